"""`python -m bench`: measure, print tables, write JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.bars import all_bars
from bench.disturbed import measure_disturbed
from bench.environment import environment
from bench.peak import fma_peak
from bench.report import show, to_json
from bench.runner import measure
from bench.workloads import TRAINING, Workload, cpu_workloads, cuda_workloads, quick_workloads
from fused_lstm import _ops


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--filter", default="", help="only rows with this in their name or group")
    parser.add_argument("--quick", action="store_true", help="a few small rows, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--budget", type=float, help="seconds to spend on each row and mode")
    return parser.parse_args(arguments)


def chosen_workloads(arguments: argparse.Namespace) -> list[Workload]:
    all_rows = cuda_workloads() if arguments.device == "cuda" else cpu_workloads()
    rows = quick_workloads() if arguments.quick else all_rows
    return [row for row in rows if arguments.filter in f"{row.name} {row.group}"]


def warn_if_busy() -> None:
    """Another process in the way slows both providers, and nn.LSTM's waiting threads the most."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5 * (os.cpu_count() or 1):
        print(f"the machine is busy (load {load:.1f}): times will be off", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    reason = _ops.unavailable(options.device, torch.float32)
    if reason:
        print(f"python -m bench: there is nothing to measure: {reason}", file=sys.stderr)
        return 1
    torch.set_num_threads(options.threads)
    # nn.LSTM says so of itself with a projection; that it is slow then is what the table shows.
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    workloads = chosen_workloads(options)
    if not workloads:
        print(f"python -m bench: no row has '{options.filter}' in its name", file=sys.stderr)
        return 1
    warn_if_busy()
    cases = [(workload, mode) for workload in workloads for mode in workload.modes]
    busy = [row for row in workloads if row.name in ("small", "medium")]
    if options.device == "cuda":
        busy = []
    budget = options.budget or (0.1 if options.quick else 1.0)

    results, disturbances = [], []
    # The bar goes to stderr, so that stdout holds nothing but the tables.
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("peak", total=len(cases) + len(busy))
        fma_peak(options.threads)
        for workload, mode in cases:
            progress.update(task, description=f"{workload.name}, {mode}")
            results.append(measure(workload, mode, options.threads, budget, options.device))
            progress.advance(task)
        for workload in busy:
            progress.update(task, description=f"{workload.name}, one core busy")
            disturbances.append(measure_disturbed(workload, TRAINING, options.threads, budget))
            progress.advance(task)

    facts = environment(options.threads, options.device)
    bars = []
    if options.device == "cpu":
        bars = all_bars(results, disturbances, fma_peak(options.threads))
    console = Console(width=max(Console().width, 175))  # narrower, rows would lose their ends
    show(console, facts, results, disturbances, bars)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(to_json(facts, results, disturbances, bars), indent=1))
        console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
