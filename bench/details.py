"""What a reader asks for second: rates, memory, errors, what limits a row, where it comes from."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import units
from .providers import BASELINE, FUSED
from .report import field, make_table, rate, show_table
from .results import Result, Run
from .workload import Workload


def rows_table(workloads: list[Workload]) -> Table:
    table = make_table("Rows")
    for heading in ("row", "batch x steps\ninput->hidden", "dtype", "from", "note"):
        table.add_column(heading)
    for row in workloads:
        cells = (row.name, row.shape, row.dtype_name, row.source, row.note)
        table.add_row(*map(escape, cells))
    return table


def two(result: Result, cell) -> list[str]:
    return [cell(result, name) for name in (BASELINE, FUSED)]


def rates_table(results: list[Result]) -> Table:
    table = make_table("Rates and memory")
    table.add_column("\nrow")
    for heading in ("GFLOP/s\nnn.LSTM", "\nfused", "\nlimited by"):
        table.add_column(heading, justify="right")
    for heading in ("memory\nnn.LSTM", "\nfused"):
        table.add_column(heading, justify="right")
    for result in results:
        by = result.limit.by if result.limit else units.NOT_KNOWN
        memory = two(result, field("first_call_memory", units.size))
        table.add_row(row_name(result), *two(result, rate), by, *memory)
    return table


def errors_table(results: list[Result]) -> Table:
    table = make_table("Largest error against float64, relative to the largest element")
    table.add_column("row")
    for heading in ("nn.LSTM", "fused", "ratio", "of allowed"):
        table.add_column(heading, justify="right")
    worst = field("error_ratio", units.times)
    allowed = field("error_of_allowed", units.percent)
    for result in results:
        errors = two(result, field("error", units.error))
        table.add_row(row_name(result), *errors, worst(result, FUSED), allowed(result, FUSED))
    return table


def row_name(result: Result) -> str:
    return escape(f"{result.workload.name}, {result.mode}")


def show_details(console: Console, run: Run) -> None:
    for table in (rates_table(run.results), errors_table(run.results)):
        show_table(console, table)
    console.print(
        "Errors are of outputs in inference, and of the gradients of the input and of every "
        "parameter in training; the ratio is that of the worst tensor. Allowed is what the tests "
        "allow: twice nn.LSTM's error, three times for gradients, and a unit in the last place."
    )
