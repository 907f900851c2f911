"""The command line of the benchmark, and the rows and providers that it chooses."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .bars import extra_providers
from .isa import CAPS
from .providers import BASELINE, FUSED, PROVIDERS, Provider
from .workloads import (
    ALL_MODES,
    DENSE,
    MODES,
    Workload,
    cpu_workloads,
    cuda_workloads,
    grid_workloads,
    quick_workloads,
)

DTYPES = ("float32", "float64", "bfloat16", "float16")
DESCRIPTION = "Measures fused_lstm.LSTM against torch.nn.LSTM and others, by turns in one process."


@dataclass(frozen=True)
class Case:
    """One row in one mode, and who runs it."""

    workload: Workload
    mode: str
    providers: list[Provider]


def make_parser(package: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=DESCRIPTION)
    add = parser.add_argument
    add("--workload", nargs="+", default=[], metavar="TEXT", help="rows with this in name or group")
    modes = f"{', '.join(ALL_MODES)} (forward: with grad enabled); without: {' and '.join(MODES)}"
    add("--mode", nargs="+", choices=ALL_MODES, default=list(MODES), metavar="MODE", help=modes)
    add("--dtype", choices=DTYPES, help="the float32 rows in this dtype, and those that have it")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    names = [*PROVIDERS, "all"]
    who = f"{', '.join(names)}; without: the two, and other forms of nn.LSTM where it is slow"
    add("--provider", nargs="+", default=[], choices=names, metavar="NAME", help=who)
    add("--isa", choices=tuple(CAPS), help="cap both libraries to these instructions")
    add("--quick", action="store_true", help="a few small rows, in seconds")
    add("--grid", action="store_true", help="also every batch size with every hidden size")
    add("--budget", type=float, metavar="SECONDS", help="to spend on each row and mode, at least")
    add("--details", action="store_true", help="also rates, memory, errors, and what limits a row")
    add("--bars", action="store_true", help="also the project's own bars, where they are measured")
    add("--json", type=Path, metavar="FILE", help="write everything there")
    add("--compare", type=Path, metavar="FILE", help="say what got slower since that --json")
    add("--list", action="store_true", help="list the rows, and where their sizes come from")
    return parser


def parse(package: str, arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(package)
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads has to be at least 1, got {options.threads}")
    if options.isa and options.device == "cuda":
        parser.error("--isa caps processors, not GPUs")
    if not chosen_workloads(options):
        parser.error("no row is left; --list shows all of them")
    if not cases(options):
        parser.error("none of these providers runs any of these rows")
    return options


def in_dtype(rows: list[Workload], name: str) -> list[Workload]:
    """The rows that have this dtype, and those of float32 in it."""
    dtype = getattr(torch, name)
    found = {row.name: row for row in rows if row.dtype == dtype}
    for row in rows:
        if row.dtype == torch.float32 != dtype and not row.busy_core:
            group = name if row.group == DENSE else f"{row.group}, {name}"
            row = replace(row, name=f"{row.name}, {name}", group=group, dtype=dtype)
            found.setdefault(row.name, row)
    return list(found.values())


def matching(rows: list[Workload], text: str) -> list[Workload]:
    """The row of this name, else all that have the text in their name or group."""
    exact = [row for row in rows if row.name == text]
    return exact or [row for row in rows if text.lower() in f"{row.name} {row.group}".lower()]


def chosen_workloads(options: argparse.Namespace) -> list[Workload]:
    if options.device == "cuda":
        rows = cuda_workloads()
    elif options.quick:
        rows = quick_workloads()
    elif options.workload or options.grid:
        rows = cpu_workloads() + grid_workloads()
    else:
        rows = cpu_workloads()
    if options.dtype:
        rows = in_dtype(rows, options.dtype)
    if options.workload:
        found = [row for text in options.workload for row in matching(rows, text)]
        rows = list(dict.fromkeys(found))
    return [row for row in rows if set(row.modes) & set(options.mode) or can_forward(row, options)]


def can_forward(row: Workload, options: argparse.Namespace) -> bool:
    return "forward" in options.mode and row.calls == 1 and not row.busy_core


def chosen_providers(workload: Workload, mode: str, options: argparse.Namespace) -> list[Provider]:
    """In the table's order; of those that can run the row."""
    names = set(options.provider)
    if "all" in names:
        names = set(PROVIDERS)
    elif not names:
        names = {name for name, provider in PROVIDERS.items() if provider.by_default}
        names |= set(workload.also)
        if options.bars:
            names |= set(extra_providers(workload, mode))
    if workload.busy_core or options.device == "cuda":
        names &= {BASELINE, FUSED}
    return [p for name, p in PROVIDERS.items() if name in names and not p.why_not(workload, mode)]


def cases(options: argparse.Namespace) -> list[Case]:
    """Everything to measure, in order."""
    found = []
    for row in chosen_workloads(options):
        modes = [mode for mode in options.mode if mode in row.modes]
        if can_forward(row, options) and "forward" not in modes:
            modes.append("forward")
        for mode in modes:
            if providers := chosen_providers(row, mode, options):
                found.append(Case(row, mode, providers))
    return found
