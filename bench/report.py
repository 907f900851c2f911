"""A run as tables, for a terminal of 80 columns or more, or a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import units
from .providers import BASELINE, FUSED, PROVIDERS
from .results import Disturbance, Result, Run, spread
from .summary import FASTEST_FORM, Means, features, headline, means_by_group
from .workloads import GRID, INFERENCE, TRAINING

NARROWEST, IN_A_FILE = 80, 100  # columns
NAME_WIDTH = 22  # the longest name of a float32 row; longer ones take two lines
SLOWER = 0.97  # a ratio below is a loss, above one it may be noise


def make_console(stderr: bool = False) -> Console:
    """As wide as the terminal; what goes to a file has a width of its own."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = IN_A_FILE
    console.width = max(console.width, NARROWEST)
    return console


def make_table(title: str) -> Table:
    return Table(title=title, box=None, padding=(0, 1, 0, 0))


def show_table(console: Console, table: Table) -> None:
    """The title on a line of its own, which may be wider than the table."""
    title, table.title = table.title, None
    console.print()
    console.print(title, style="bold")
    console.print(table)


def ratio(value: float | None) -> str:
    text = units.times(value)
    return f"[bold red]{text}[/]" if value is not None and value < SLOWER else text


@dataclass(frozen=True)
class Column:
    heading: str
    of_row: Callable[[Result], str]
    of_other: Callable[[Result, str], str]  # below a row: another provider on it
    from_width: int = 0  # of the terminal


def nothing(result: Result, name: str) -> str:
    return ""


def failure(result: Result, name: str = FUSED) -> str:
    """In place of a time."""
    measurement = result.measurements.get(name)
    if measurement is None or not measurement.failed:
        return ""
    return "[bold red]" + ("wrong" if measurement.failed.startswith("wrong") else "failed")


def time_or_failure(result: Result, name: str) -> str:
    time = result.time(name)
    return units.seconds(time.median) if time else failure(result, name)


def quartiles(result: Result, than: str) -> str:
    faster = result.faster(than)
    return f"{units.times(faster.low)}-{units.times(faster.high)}" if faster else ""


def faster(result: Result, than: str) -> str:
    found = result.faster(than)
    return ratio(found.median) if found else ""


def share(result: Result, name: str) -> str:
    told = result.time(name) and not PROVIDERS[name].other_arithmetic
    return units.percent(result.share(name)) if told else ""


def field(name: str, show: Callable) -> Callable[[Result, str], str]:
    """A measurement's field as text; nothing where the provider was not measured."""

    def cell(result: Result, provider: str) -> str:
        measurement = result.measurements.get(provider)
        return "" if measurement is None else show(getattr(measurement, name))

    return cell


def rate(result: Result, name: str) -> str:
    return units.rate(result.gflops(name)) if result.time(name) else ""


def pair(heading: str, cell: Callable[[Result, str], str], from_width: int = 0) -> list[Column]:
    """Two columns: nn.LSTM's, which another provider's line uses too, and fused_lstm's."""
    return [
        Column(f"{heading}\nnn.LSTM", lambda r: cell(r, BASELINE), cell, from_width),
        Column("\nfused", lambda r: cell(r, FUSED), nothing, from_width),
    ]


COLUMNS = [
    *pair("", time_or_failure),
    Column("times\nfaster", lambda r: faster(r, BASELINE), faster),
    Column("\nquartiles", lambda r: quartiles(r, BASELINE), quartiles, 100),
    Column("\nlimit", lambda r: units.seconds(r.limit.seconds if r.limit else None), nothing, 100),
    *pair("reached", share),
    *pair("memory", field("first_call_memory", units.size), 130),
    *pair("GFLOP/s", rate, 160),
    *pair("error", field("error", units.error), 160),
]


def results_table(results: list[Result], title: str, width: int) -> Table:
    """Rows by group; a provider other than the two has a line below its row."""
    columns = [column for column in COLUMNS if width >= column.from_width]
    table = make_table(title)
    table.add_column("\nrow", width=NAME_WIDTH, overflow="fold")
    table.add_column("batch x steps\ninput->hidden", overflow="fold")
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for group, members in by_group(results):
        table.add_row()
        table.add_row(f"[bold]{escape(group)}")
        for result in members:
            cells = (column.of_row(result) for column in columns)
            table.add_row(escape(result.workload.name), result.workload.shape, *cells)
            for name in result.measurements:
                if name not in (BASELINE, FUSED):
                    cells = (column.of_other(result, name) for column in columns)
                    table.add_row(f"  {PROVIDERS[name].label}", "", *cells)
    return table


def by_group(results: list[Result]) -> Iterable[tuple[str, Iterable[Result]]]:
    """In the order in which the groups come first."""
    order = list(dict.fromkeys(result.workload.group for result in results))
    in_order = sorted(results, key=lambda result: order.index(result.workload.group))
    return groupby(in_order, key=lambda result: result.workload.group)


def grid_table(results: list[Result], mode: str) -> Table:
    """Times faster for every batch and hidden size."""
    found = {(r.workload.batch, r.workload.hidden[0]): r for r in results}
    batches, sizes = (sorted({key[k] for key in found}) for k in (0, 1))
    table = make_table(f"Times faster than nn.LSTM, {mode}, by batch and hidden size")
    table.add_column("batch")
    for size in sizes:
        table.add_column(f"H={size}", justify="right", min_width=7)
    for batch in batches:
        cells = [found.get((batch, size)) for size in sizes]
        table.add_row(str(batch), *(faster(c, BASELINE) or failure(c) if c else "" for c in cells))
    return table


def means_table(title: str, means: Iterable[Means]) -> Table:
    table = make_table(f"{title}: slowest row and geometric mean")
    table.add_column("")
    table.add_column("\nrows", justify="right")
    for mode in (INFERENCE, TRAINING):
        for heading in (f"{mode}\nslowest", "\nmean"):
            table.add_column(heading, justify="right")
    for each in means:
        cells = [str(each.rows)]
        for mode in (INFERENCE, TRAINING):
            found = each.modes.get(mode)
            cells += [ratio(found.slowest), ratio(found.mean)] if found else ["", ""]
        table.add_row(escape(each.group), *cells)
    return table


def disturbance_table(disturbances: list[Disturbance]) -> Table:
    tries = max(len(taken) for each in disturbances for taken in each.slowdowns.values())
    table = make_table(f"Times slower with another process on one core, of {tries} tries")
    table.add_column("row")
    table.add_column("")
    for heading in ("alone", "median", "worst"):
        table.add_column(heading, justify="right", min_width=8)
    for each in disturbances:
        row = escape(f"{each.workload.name}, {each.mode}")
        for name, slowdowns in each.slowdowns.items():
            middle, worst = spread(slowdowns).median, max(slowdowns)
            cells = (units.seconds(each.alone[name]), units.times(middle), units.times(worst))
            table.add_row(row, PROVIDERS[name].label, *cells)
            row = ""
    return table


def notes(results: list[Result]) -> list[str]:
    """What a reader has to know of single rows."""
    lines = []
    for result in results:
        workload = result.workload
        if workload.note:
            lines.append(f"{workload.name}: {workload.note}.")
        if result.disturbed:
            lines.append(
                f"{workload.name}, {result.mode}: a core was missing in {result.disturbed} of "
                f"{result.rounds} rounds."
            )
        for name, measurement in result.measurements.items():
            place = f"{workload.name}, {result.mode}, {PROVIDERS[name].label}"
            if measurement.failed:
                lines.append(f"{place}: {measurement.failed}.")
            elif measurement.setup_seconds:
                lines.append(f"{place}: {units.seconds(measurement.setup_seconds)} to compile.")
            if name == "padded" and workload.bidirectional:
                lines.append(
                    f"{place}: computes something else, the reverse starts in the padding."
                )
    if again := sum(result.again for result in results):
        rounds = again + sum(result.rounds for result in results)
        lines.append(
            f"{again} of {rounds} rounds were measured again: a core of this machine was missing, "
            "as where a host has others run on it."
        )
    return list(dict.fromkeys(lines))


# What a limit is, by device.
LIMITS = {
    "cpu": (
        "the limit of this machine, which is the matrix products at its multiply-add peak, or the "
        "weights once per step from the caches, whichever takes longer"
    ),
    "cuda": (
        "the limit of an H200, whatever GPU this is: the matrix products at that one's rate and, "
        "where the weights are too many for one of its cores, in every step an exchange between "
        "them"
    ),
}


def legend(device: str) -> str:
    return f"""\
times faster: nn.LSTM's time over fused_lstm's, the median of the ratios of each round; in \
indented lines that provider's time over fused_lstm's.
reached: share of {LIMITS[device]}. Where nn.LSTM reaches a share s, nothing in the same \
arithmetic can be more than 1/s times faster.
The first sentence, and the line of all rows below, compare with {FASTEST_FORM}."""


def machine_line(facts: dict) -> str:
    device = facts.get("gpu") or f"{facts['cpu']} ({facts['cpu_kind']})"
    parts = [device, f"{facts['threads']} threads", facts["isa"] or "no extension"]
    if facts["isa_cap"]:
        parts.append(f"both libraries capped to {facts['isa_cap']}")
    if facts["machine"]:
        parts.append(f"{facts['machine']['flops'] / 1e9:.0f} GFLOP/s float32 peak")
    versions = f"torch {facts['torch']}, fused_lstm {facts['fused_lstm']} {facts['commit']}".strip()
    return f"{', '.join(parts)}; {versions}; {facts['date']}"


def precision_line(run: Run) -> str:
    """What the settings of float32's precision came to, where a row was run under one."""
    said = run.environment.get("fp32_precision", {})
    ran = {name for result in run.results for name in result.measurements}
    return "; ".join(f'under "{name}": computed in {said[name]}' for name in said if name in ran)


def show(console: Console, run: Run) -> None:
    """First what a user gains, then the rows, then what they mean."""
    console.print(headline(run), style="bold")
    rows = [result for result in run.results if result.workload.group != GRID]
    for mode in dict.fromkeys(result.mode for result in run.results):
        if in_mode := [r for r in rows if r.mode == mode]:
            show_table(console, results_table(in_mode, mode.capitalize(), console.width))
        if grid := [r for r in run.results if r.mode == mode and r.workload.group == GRID]:
            show_table(console, grid_table(grid, mode))
    if rows:
        console.print()
        console.print(legend(run.environment["device"]))
    for line in notes(run.results):
        console.print(escape(line))
    if any(result.faster() for result in run.results):
        show_table(console, means_table("Times faster than nn.LSTM", means_by_group(run.results)))
    if lacking := list(features(run.results)):
        show_table(console, means_table("What nn.LSTM lacks, times faster", lacking))
    if run.disturbances:
        show_table(console, disturbance_table(run.disturbances))
    console.print()
    if line := precision_line(run):
        console.print(escape(line))
    console.print(escape(machine_line(run.environment)))
    if not run.complete:
        console.print("Not complete: the rows that are missing were not measured.")
