"""Results as tables for a reader, and as JSON for a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import groupby

from rich.console import Console
from rich.table import Table

from bench.bars import Bar, geometric_mean
from bench.disturbed import Disturbance
from bench.floor import step_floor, steps_of
from bench.peak import fma_peak
from bench.providers import BASELINE, FUSED
from bench.runner import Result, Timing
from bench.workloads import DOUBLE, Workload

NOT_KNOWN = "n/a"


def seconds(value: float) -> str:
    """With a unit that leaves three or four digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e9:.0f} ns"


def share_of_peak(result: Result, provider: str) -> float | None:
    """Share of the float32 multiply-add rate; of half of it for float64, which is half as wide."""
    peak = fma_peak(result.threads)
    if peak is None:
        return None
    if result.workload.group == DOUBLE:
        peak /= 2
    return result.gflops(provider) / peak


def step_seconds(result: Result) -> float:
    """Seconds that one step of one layer takes."""
    return result.timings[FUSED].median / steps_of(result.workload)


def percent(value: float | None) -> str:
    return NOT_KNOWN if value is None else f"{100 * value:.0f}%"


def ratio(value: float | None) -> str:
    return NOT_KNOWN if value is None else f"{value:.2f}"


def colored(value: float, bar: float) -> str:
    return f"[green]{value:.2f}[/]" if value >= bar else f"[red]{value:.2f}[/]"


def results_table(results: list[Result], device: str) -> Table:
    table = Table(title="fused_lstm.LSTM and torch.nn.LSTM, median time per call")
    for heading in ("row", "batch x steps, input->hidden", "mode"):
        table.add_column(heading, no_wrap=True)
    speed = ("us/step", "floor", "share") if device == "cuda" else ("GFLOP/s", "peak", "nn.LSTM's")
    for heading in ("nn.LSTM", "fused", "faster", *speed, "error", "nn.LSTM's", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note", no_wrap=True)
    groups = list(dict.fromkeys(result.workload.group for result in results))
    in_groups = sorted(results, key=lambda result: groups.index(result.workload.group))
    for group, members in groupby(in_groups, key=lambda result: result.workload.group):
        table.add_section()
        table.add_row(f"[bold]{group}")
        for result in members:
            table.add_row(*result_cells(result, device))
    return table


def result_cells(result: Result, device: str) -> Iterator[str]:
    workload, errors = result.workload, result.accuracy.errors
    yield "  " + workload.name
    yield workload.shape
    yield result.mode
    yield seconds(result.timings[BASELINE].median)
    yield seconds(result.timings[FUSED].median)
    yield colored(result.ratio, 1.0)
    if device == "cuda":
        step, floor = step_seconds(result), step_floor(workload, result.mode)
        yield from (f"{1e6 * step:.2f}", f"{1e6 * floor:.2f}", percent(floor / step))
    else:
        yield f"{result.gflops(FUSED):.3g}"
        yield from (percent(share_of_peak(result, name)) for name in (FUSED, BASELINE))
    yield f"{errors[FUSED]:.1e}"
    yield f"{errors[BASELINE]:.1e}"
    yield ratio(result.accuracy.ratio)
    notes = [workload.note] if workload.note else []
    notes += ["one thread"] if workload.threads == 1 else []
    yield "; ".join(notes)


def means_table(results: list[Result]) -> Table:
    table = Table(title="Times faster than nn.LSTM, by group")
    for heading in ("group", "mode"):
        table.add_column(heading)
    for heading in ("rows", "slowest", "geometric mean"):
        table.add_column(heading, justify="right")
    groups: dict[tuple[str, str], list[float]] = {}
    for result in results:
        groups.setdefault((result.workload.group, result.mode), []).append(result.ratio)
    for (group, mode), values in groups.items():
        mean = f"{geometric_mean(values):.2f}"
        table.add_row(group, mode, str(len(values)), colored(min(values), 1.0), mean)
    return table


def disturbance_table(disturbances: list[Disturbance]) -> Table:
    table = Table(title="With another process on one core: times slower than alone")
    table.add_column("row")
    table.add_column("mode")
    for heading in (BASELINE, FUSED):
        table.add_column(heading, justify="right")
    for each in disturbances:
        slowdowns = [f"{each.slowdown(name):.2f}" for name in (BASELINE, FUSED)]
        table.add_row(each.workload.name, each.mode, *slowdowns)
    return table


def bars_table(bars: list[Bar]) -> Table:
    table = Table(title="Bars")
    table.add_column("what")
    for heading in ("bar", "measured", "met"):
        table.add_column(heading, justify="right")
    for bar in bars:
        table.add_row(bar.what, bar.wanted, bar.shown, "[green]yes" if bar.met else "[red]no")
    return table


def show(
    console: Console,
    facts: dict,
    results: list[Result],
    disturbances: list[Disturbance],
    bars: list,
) -> None:
    console.print(results_table(results, facts["device"]))
    console.print(
        "error: largest difference from float64, relative to the largest element; of outputs, or "
        "of gradients in training.\n"
        "peak: share of the measured float32 multiply-add rate; only matrix products are counted. "
        "Where nn.LSTM has a share s, no float32 LSTM can be more than 1/s times faster.",
        style="dim",
    )
    console.print(means_table(results))
    if disturbances:
        console.print(disturbance_table(disturbances))
    if bars:
        console.print(bars_table(bars))
    peak = facts["fma_peak_gflops"]
    console.print(
        f"{facts['cpu']}, {facts['threads']} threads, {facts['isa'] or 'no extension'}, "
        f"FMA peak {f'{peak:.0f} GFLOP/s' if peak else NOT_KNOWN}; torch {facts['torch']}, "
        f"fused_lstm {facts['fused_lstm']} {facts['commit']}, {facts['date']}"
    )


def workload_json(workload: Workload) -> dict:
    return {**dataclasses.asdict(workload), "dtype": str(workload.dtype).removeprefix("torch.")}


def timing_json(timing: Timing) -> dict:
    low, high = timing.quartiles
    return {"median": timing.median, "quartiles": [low, high], "blocks": len(timing.seconds)}


def to_json(
    facts: dict, results: list[Result], disturbances: list[Disturbance], bars: list[Bar]
) -> dict:
    """Everything a run found; times are seconds per call."""
    return {
        "environment": facts,
        "results": [
            {
                "workload": workload_json(result.workload),
                "mode": result.mode,
                "threads": result.threads,
                "seconds": {name: timing_json(t) for name, t in result.timings.items()},
                "ratio": result.ratio,
                "gflops": {name: result.gflops(name) for name in result.timings},
                "share_of_peak": {name: share_of_peak(result, name) for name in result.timings},
                "seconds_per_step": step_seconds(result),
                "errors": result.accuracy.errors,
                "error_ratio": result.accuracy.ratio,
            }
            for result in results
        ],
        "one_core_busy": [
            {
                "workload": workload_json(each.workload),
                "mode": each.mode,
                "alone": {name: timing_json(t) for name, t in each.alone.items()},
                "disturbed": {name: timing_json(t) for name, t in each.disturbed.items()},
                "slowdown": {name: each.slowdown(name) for name in each.alone},
            }
            for each in disturbances
        ],
        "bars": [dataclasses.asdict(bar) for bar in bars],
    }
