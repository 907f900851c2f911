"""Measures what the command line asks for, prints tables, writes JSON."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from itertools import groupby

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fused_lstm import _ops

from . import bars, results
from .bars import Bar
from .compare import show_comparison
from .details import rows_table, show_details
from .disturbed import measure_disturbed
from .environment import BUSY_CORES, busy_cores, environment
from .isa import cap_in_force, run_capped
from .options import Case, cases, chosen_workloads, parse
from .report import make_console, show, show_table
from .results import Run
from .runner import LEAST_ROUNDS, Row, first_line

FAILED, INTERRUPTED = 1, 130  # exit status, the latter of a program that Ctrl-C ended
# Seconds to spend on each row, mode: enough for tens of rounds of most rows.
BUDGET, QUICK_BUDGET = 0.8, 0.1


def complain(package: str, reason: str) -> int:
    print(f"python -m {package}: {reason}", file=sys.stderr)
    return FAILED


def warn_if_busy() -> None:
    """Another process in the way slows every provider, and nn.LSTM's waiting threads the most."""
    busy = busy_cores()
    if busy is not None and busy > BUSY_CORES:
        print(f"other processes use {busy:.1f} cores: times will be off", file=sys.stderr)


def measure(chosen: list[Case], options: argparse.Namespace, run: Run) -> int:
    """Adds to `run` row by row, and writes it after each. Returns the exit status.

    Ctrl-C ends it and loses only the row that was being measured, as does an error in a row.
    """
    console = Console(stderr=True)  # stdout holds nothing but the tables
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    progress = Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    )
    code = 0
    with progress:
        task = progress.add_task("", total=len(chosen))
        try:
            for workload, members in groupby(chosen, key=lambda case: case.workload):
                row = cache(partial(Row, workload, options.threads, options.device))
                for case in members:
                    name = f"{workload.name}, {case.mode}"
                    progress.update(task, description=escape(name))
                    try:
                        measure_case(case, row, options, run)
                        if options.json:
                            results.save(options.json, results.to_json(run))
                    except Exception as error:  # not of a provider: those a row keeps itself
                        console.print(escape(f"{name}: {first_line(error)}"))
                        code = FAILED
                    progress.advance(task)
        except KeyboardInterrupt:
            return INTERRUPTED
    run.complete = code == 0
    return code


def measure_case(case: Case, row: Callable[[], Row], options: argparse.Namespace, run: Run) -> None:
    budget = options.budget
    if budget is None:
        budget = QUICK_BUDGET if options.quick else BUDGET
    if case.workload.busy_core:
        arguments = (case.workload, case.mode, options.threads, case.providers)
        run.disturbances.append(measure_disturbed(*arguments, budget))
    else:
        brgemm = options.bars and bars.brgemm_bar(case.workload, case.mode) is not None
        least = LEAST_ROUNDS
        if options.bars and bars.is_close(case.mode, [p.name for p in case.providers]):
            least, budget = bars.CLOSE_ROUNDS, budget * bars.CLOSE_BUDGETS
        run.results.append(row().measure(case.mode, case.providers, budget, brgemm, least))


def main(package: str, arguments: list[str] | None = None) -> int:
    try:
        return run_and_show(package, sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # before the first row, or while the tables are printed
        return INTERRUPTED


def run_and_show(package: str, arguments: list[str]) -> int:
    options = parse(package, arguments)
    console = make_console()
    if options.list:
        show_table(console, rows_table(chosen_workloads(options)))
        return 0
    if options.isa and cap_in_force() != options.isa:
        run_capped(options.isa, package, arguments)
    if reason := _ops.unavailable(options.device, torch.float32):
        return complain(package, f"there is nothing to measure: {reason}")
    old = None
    if options.compare:
        try:
            old = results.load(options.compare)
        except (OSError, ValueError) as error:
            return complain(package, f"cannot compare with {options.compare}: {error}")
    if options.json:
        try:
            results.check_writable(options.json)
        except OSError as error:
            return complain(package, f"cannot write to {options.json}: {error}")

    torch.set_num_threads(options.threads)
    # nn.LSTM says so of itself with a projection; that it is slow then is what the table shows.
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    warn_if_busy()
    command = ["python", "-m", package, *arguments]
    run = Run(environment(options.threads, options.device, command), complete=False)
    code = measure(cases(options), options, run)

    met = bars.all_bars(run) if options.bars else []
    said = ""
    if options.json:  # first, as whatever reads the tables may stop reading
        try:
            results.save(options.json, results.to_json(run, met))
            said = f"written to {options.json}"
        except OSError as error:
            code = complain(package, f"cannot write to {options.json}: {error}")
    show_all(console, options, run, met)
    if old:
        show_comparison(console, old, run)
    if said:
        console.print(escape(said))
    return code


def show_all(console: Console, options: argparse.Namespace, run: Run, met: list[Bar]) -> None:
    show(console, run)
    if options.details:
        show_details(console, run)
    if options.bars:
        bars.show_bars(console, met)
