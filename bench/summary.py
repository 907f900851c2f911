"""What a run means: one sentence, and means by group."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import units
from .providers import BASELINE, FUSED, RECOMPUTE
from .results import Result, Run, Spread, geometric_mean
from .workloads import DENSE, FORWARD, GRID, INFERENCE, MEMBERS, TRAINING


@dataclass(frozen=True)
class Mean:
    slowest: float
    fastest: float
    mean: float  # geometric
    rows: int


@dataclass(frozen=True)
class Means:
    group: str
    rows: int
    modes: dict[str, Mean]


def means(ratios: list[float]) -> Mean:
    return Mean(min(ratios), max(ratios), geometric_mean(ratios), len(ratios))


def over_same_rows(
    group: str, results: list[Result], measure: Callable[[Result], Spread | None]
) -> Means | None:
    """Times faster in each mode, over the rows that were measured in every mode of the group.

    Where there are no such rows, over all rows of each mode.
    """
    by_mode: dict[str, dict[str, float]] = {}
    for result in results:
        if faster := measure(result):
            by_mode.setdefault(result.mode, {})[result.workload.name] = faster.median
    if not by_mode:
        return None
    common = set.intersection(*(set(names) for names in by_mode.values()))
    found = {
        mode: means([ratio for name, ratio in rows.items() if name in common or not common])
        for mode, rows in by_mode.items()
    }
    return Means(group, len(common or set().union(*by_mode.values())), found)


def means_by_group(results: list[Result]) -> Iterator[Means]:
    """One for each group, and where there are several groups the gains over all rows."""
    groups = list(dict.fromkeys(result.workload.group for result in results))
    for group in groups:
        members = [result for result in results if result.workload.group == group]
        if found := over_same_rows(group, members, Result.faster):
            yield found
    if len(groups) > 1 and (found := gains(results)):
        yield found


def gains(results: list[Result]) -> Means | None:
    """Over the fastest form of nn.LSTM, of all rows but those of a kind of their own: the grid, and
    what nn.LSTM can only loop over. Of these where they are alone.
    """
    apart = (GRID, MEMBERS)
    rows = [result for result in results if result.workload.group not in apart] or results
    return over_same_rows("all, over nn.LSTM's fastest form", rows, Result.gain)


def less_memory(result: Result) -> Spread | None:
    """How many times less memory training holds with recompute than without."""
    sizes = [
        result.measurements[name].first_call_memory if name in result.measurements else None
        for name in (FUSED, "recompute")
    ]
    return Spread(*[sizes[0] / sizes[1]] * 3) if all(sizes) else None


# What nn.LSTM lacks, over what one does without it.
FEATURES: dict[str, Callable[[Result], Spread | None]] = {
    "lengths, over packed or padded input to nn.LSTM": lambda r: r.gain("lengths"),
    "stream, over a call of nn.LSTM for each step": lambda r: r.faster(BASELINE, "stream"),
    "resets, over a call of nn.LSTM for each step": lambda r: r.faster("reset-loop", "resets"),
    f"recompute={RECOMPUTE}, over fused_lstm without": lambda r: r.faster(FUSED, "recompute"),
    f"recompute={RECOMPUTE}: times less memory": less_memory,
}


def features(results: list[Result]) -> Iterator[Means]:
    """One for each that was measured."""
    for name, measure in FEATURES.items():
        if found := over_same_rows(name, results, measure):
            yield found


def mean_share(results: list[Result], mode: str, provider: str) -> float | None:
    """Mean share of the machine's limit on dense float32 rows."""
    shares = [
        result.share(provider)
        for result in results
        if result.workload.group == DENSE and result.mode == mode
    ]
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def worst_errors(results: list[Result]) -> dict[str, tuple[float, Result]]:
    """In each mode the row whose error comes nearest to what is allowed, or lies furthest beyond,
    and the share of that.
    """
    worst: dict[str, tuple[float, Result]] = {}
    for result in results:
        ours = result.measurements.get(FUSED)
        if ours is not None and ours.error_of_allowed is not None:
            found = (ours.error_of_allowed, result)
            worst[result.mode] = max(worst.get(result.mode, found), found, key=nan_last)
    return worst


def nan_last(found: tuple[float, Result]) -> float:
    return math.inf if math.isnan(found[0]) else found[0]


# What the sentence and the line of all rows compare with, and over which rows.
FASTEST_FORM = (
    "the fastest form of nn.LSTM (as it is, padded where it is packed, or in float32 where its "
    "dtype is narrower), over the rows measured in every mode, without grid and members"
)


def headline(run: Run) -> str:
    """What a user of this machine gains."""
    if not run.results:
        only = "Only the rows beside a busy core were measured."
        return only if run.disturbances else "Nothing was measured."
    overall = gains(run.results)
    if overall is None:
        return "Nothing was compared with nn.LSTM."
    where = "this machine" if run.environment["device"] == "cpu" else "this GPU"
    sentences = []
    for mode in (TRAINING, INFERENCE, FORWARD):
        if found := overall.modes.get(mode):
            first = not sentences
            subject = f"With fused_lstm, {mode} on {where}" if first else mode.capitalize()
            than = " than with the fastest form of nn.LSTM" if first else ""
            sentences.append(f"{subject} is {gained(found, than)}{reached(run, mode)}")
    return ". ".join(sentences) + "."


def gained(found: Mean, than: str) -> str:
    slowest, fastest = units.times(found.slowest), units.times(found.fastest)
    if slowest == fastest:
        return f"{slowest} times faster{than}"
    mean = f"{units.times(found.mean)} on average over {found.rows} rows"
    return f"{slowest} to {fastest} times faster{than}, {mean}"


def reached(run: Run, mode: str) -> str:
    """The share of the machine's limit."""
    ours, theirs = (mean_share(run.results, mode, name) for name in (FUSED, BASELINE))
    if ours is None:
        return ""
    beside = f" (nn.LSTM {units.percent(theirs)})" if theirs is not None else ""
    limit = "the machine" if run.environment["device"] == "cpu" else "an H200"  # see floor.py
    return f"; {DENSE} rows reach {units.percent(ours)} of what {limit} can do{beside}"
