"""The command line of the benchmark, and the rows and providers that it chooses."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .bars import extra_providers
from .isa import CAPS
from .providers import BASELINE, FUSED, PROVIDERS, RIVALS, Provider
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
OTHERS, EVERY = "others", "all"  # in place of names of providers
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
    names = [*PROVIDERS, OTHERS, EVERY]
    add("--provider", nargs="+", default=[], choices=names, metavar="NAME", help=providers_help())
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


def providers_help() -> str:
    return (
        f"{', '.join(PROVIDERS)}; without: the two, other forms of nn.LSTM where it is slow, and "
        f"what nn.LSTM lacks; {OTHERS}: these, and {', '.join(RIVALS)}; {EVERY}: all of them"
    )


def parse(package: str, arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(package)
    options = parser.parse_args(arguments)
    if reason := why_refused(options):
        parser.error(reason)
    return options


def why_refused(options: argparse.Namespace) -> str:
    """What is asked for and cannot be: nothing of it is left out unsaid. "" where all of it can."""
    if options.threads < 1:
        return f"--threads has to be at least 1, got {options.threads}"
    if options.budget is not None and not 0 <= options.budget < math.inf:
        return f"--budget has to be a number of seconds, got {options.budget}"
    if options.device == "cuda":
        if options.isa:
            return "--isa caps processors, not GPUs"
        if options.quick or options.grid or options.bars:
            return "--quick, --grid and --bars are of rows on the CPU"
    if options.quick and options.grid:
        return "--quick leaves the grid out"
    rows = chosen_workloads(options)
    for text in options.workload:
        if not matching(rows, text):
            return f"no row is left of '{text}'; --list shows all of them"
    if not rows:
        return "no row is left; --list shows all of them"
    return next(filter(None, (why_none(name, rows, options) for name in options.provider)), "")


def why_none(name: str, rows: list[Workload], options: argparse.Namespace) -> str:
    """Why a provider that is named runs none of the rows; "" where it runs one."""
    if name not in PROVIDERS:
        return ""
    reasons = [
        why_not(PROVIDERS[name], row, mode, options.device)
        for row in rows
        for mode in modes_of(row, options)
    ]
    return f"{name} runs none of these rows: {reasons[0]}" if all(reasons) else ""


def in_dtype(rows: list[Workload], name: str) -> list[Workload]:
    """The rows that have this dtype, and those of float32 in it.

    Not those whose point is TF32, which no other dtype has: they would be the dense rows again.
    """
    dtype = getattr(torch, name)
    found = {row.name: row for row in rows if row.dtype == dtype}
    for row in rows:
        if row.dtype == torch.float32 != dtype and not (row.busy_core or row.tf32):
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
    return [row for row in rows if modes_of(row, options)]


def can_forward(row: Workload, options: argparse.Namespace) -> bool:
    return "forward" in options.mode and row.calls == 1 and not row.busy_core


def modes_of(row: Workload, options: argparse.Namespace) -> list[str]:
    modes = [mode for mode in options.mode if mode in row.modes]
    if can_forward(row, options) and "forward" not in modes:
        modes.append("forward")
    return modes


def why_not(provider: Provider, workload: Workload, mode: str, device: str) -> str:
    """Why it cannot run a row; "" where it can."""
    if provider.name not in (BASELINE, FUSED):
        if device == "cuda":
            return "a GPU times nn.LSTM and fused_lstm only"
        if workload.busy_core:
            return "a busy core is for nn.LSTM and fused_lstm only"
    return provider.why_not(workload, mode)


def chosen_providers(workload: Workload, mode: str, options: argparse.Namespace) -> list[Provider]:
    """In the table's order; of those that can run the row."""
    names = set(options.provider)
    if EVERY in names:
        names = set(PROVIDERS)
    elif not names or OTHERS in names:
        names |= {name for name, provider in PROVIDERS.items() if provider.by_default}
        names |= set(workload.also)
    if OTHERS in names:
        names |= set(RIVALS)
    if options.bars and not options.provider:
        names |= set(extra_providers(workload, mode))
    return [
        provider
        for name, provider in PROVIDERS.items()
        if name in names and not why_not(provider, workload, mode, options.device)
    ]


def cases(options: argparse.Namespace) -> list[Case]:
    """Everything to measure, in order."""
    found = []
    for row in chosen_workloads(options):
        for mode in modes_of(row, options):
            if providers := chosen_providers(row, mode, options):
                found.append(Case(row, mode, providers))
    return found
