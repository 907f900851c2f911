"""What got slower since an older run, and what faster, beyond the spread of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from . import units
from .report import make_table, show_table
from .results import Result, Run, Spread

RATIO, TIME = "times faster than nn.LSTM", "time"


@dataclass(frozen=True)
class Change:
    result: Result
    what: str  # RATIO or TIME
    before: Spread
    now: Spread

    @property
    def gain(self) -> float:
        """How many times faster than before; below one is slower."""
        change = self.now.median / self.before.median
        return change if self.what == RATIO else 1 / change

    @property
    def beyond_spread(self) -> bool:
        """Whether the quartiles of both runs have nothing in common."""
        return self.now.high < self.before.low or self.now.low > self.before.high


def differences(old: Run, new: Run) -> list[str]:
    """What else is not the same, as "torch 2.12.0 -> 2.13.0"."""
    names = ("cpu", "cpu_kind", "gpu", "device", "threads", "isa", "isa_cap", "torch")
    values = ((name, old.environment.get(name), new.environment.get(name)) for name in names)
    return [f"{name} {before} -> {now}" for name, before, now in values if before != now]


def compare(old: Run, new: Run) -> Iterator[Change]:
    """Every row that both runs have.

    The ratio over nn.LSTM is compared, because the machine's own changes cancel in it; the time
    where nn.LSTM was not measured, or is another release's.
    """
    by_key = {result.key: result for result in old.results}
    same_baseline = old.environment["torch"] == new.environment["torch"]
    for result in new.results:
        before = by_key.get(result.key)
        if before is None:
            continue
        if same_baseline and before.faster() and result.faster():
            yield Change(result, RATIO, before.faster(), result.faster())
        elif before.time() and result.time():
            yield Change(result, TIME, before.time(), result.time())


def shown(change: Change, value: Spread) -> str:
    show = units.times if change.what == RATIO else units.seconds
    return f"{show(value.median)} ({show(value.low)}-{show(value.high)})"


def show_comparison(console: Console, old: Run, new: Run) -> None:
    changes = sorted(compare(old, new), key=lambda change: change.gain)
    moved = [change for change in changes if change.beyond_spread]
    slower = sum(change.gain < 1 for change in moved)
    if moved:
        table = make_table(f"Since {escape(str(old.environment['date']))}")
        for heading in ("row", "what"):
            table.add_column(heading)
        for heading in ("before (quartiles)", "now", "change"):
            table.add_column(heading, justify="right")
        for change in moved:
            row = f"{change.result.workload.name}, {change.result.mode}"
            percent = f"{100 * (change.gain - 1):+.0f}%"
            percent = f"[bold red]{percent}[/]" if change.gain < 1 else percent
            what = "ratio" if change.what == RATIO else "time"
            cells = (shown(change, change.before), shown(change, change.now), percent)
            table.add_row(escape(row), what, *cells)
        show_table(console, table)
    console.print()
    console.print(
        f"Of {len(changes)} rows in both runs {slower} got slower and {len(moved) - slower} "
        "faster by more than the quartiles of both."
    )
    if unlike := differences(old, new):
        console.print(f"Not the same in both: {escape('; '.join(unlike))}.")
