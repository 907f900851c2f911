"""The project's bars on the CPU, and whether a run meets them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.disturbed import Disturbance
from bench.providers import FUSED
from bench.runner import Result
from bench.workloads import (
    ALL_MODES,
    BFLOAT16,
    DENSE,
    DOUBLE,
    INFERENCE,
    PACKED,
    PROJECTION,
    STEPPING,
    TRAINING,
)


@dataclass(frozen=True)
class Bar:
    what: str
    wanted: str
    value: float
    shown: str
    met: bool


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def at_least(what: str, wanted: float, value: float, unit: str = "x") -> Bar:
    return Bar(what, f"at least {wanted:g}{unit}", value, f"{value:.2f}{unit}", value >= wanted)


def at_most(what: str, wanted: float, value: float) -> Bar:
    return Bar(what, f"at most {wanted:g}x", value, f"{value:.2f}x", value <= wanted)


def speed_bars(results: list[Result]) -> list[Bar]:
    """Bars on the ratio over nn.LSTM. Where a group has several rows, the slowest one counts."""
    bars = []

    def ratios(group: str, mode: str) -> list[float]:
        return [r.ratio for r in results if r.workload.group == group and r.mode == mode]

    def add(group: str, mode: str, wanted: float, summary: Callable, how: str) -> None:
        if values := ratios(group, mode):
            bars.append(at_least(f"{group}, {mode}: {how}", wanted, summary(values)))

    for mode, mean in ((INFERENCE, 1.5), (TRAINING, 2.0)):
        add(DENSE, mode, 1.0, min, "slowest row")
        add(DENSE, mode, mean, geometric_mean, "geometric mean")
    for group, mode, wanted in (
        (PACKED, INFERENCE, 2.0),
        (PACKED, TRAINING, 3.0),
        (DOUBLE, INFERENCE, 2.5),
        (DOUBLE, TRAINING, 2.5),
        (PROJECTION, INFERENCE, 2.5),
        (PROJECTION, TRAINING, 2.5),
        (BFLOAT16, TRAINING, 2.0),
    ):
        add(group, mode, wanted, min, "slowest row")
    streaming = [r for r in results if r.workload.group == STEPPING and r.workload.name == "step"]
    bars += [at_least(f"{STEPPING}, B=1, H=128", 5.0, r.ratio) for r in streaming]
    return bars


def peak_bars(results: list[Result], peak: float | None) -> list[Bar]:
    """Share of the FMA peak at B=64, T=50, I=H=512."""
    if peak is None:
        return []
    bars = []
    for result in results:
        wanted = {INFERENCE: 88.0, TRAINING: 80.0}.get(result.mode)
        if result.workload.name == "square" and wanted:
            share = 100 * result.gflops(FUSED) / peak
            bars.append(at_least(f"share of FMA peak, {result.mode}", wanted, share, "%"))
    return bars


def accuracy_bars(results: list[Result]) -> list[Bar]:
    """Error against float64 over nn.LSTM's own, for the worst row."""
    bars = []
    for what, wanted, modes in (
        ("error of outputs over nn.LSTM's", 2.0, {m for m in ALL_MODES if m != TRAINING}),
        ("error of gradients over nn.LSTM's", 3.0, {TRAINING}),
    ):
        ratios = [r.accuracy.ratio for r in results if r.mode in modes]
        known = [ratio for ratio in ratios if ratio is not None]
        bars += [at_most(what, wanted, max(known))] if known else []
    return bars


def all_bars(
    results: list[Result], disturbances: list[Disturbance], peak: float | None
) -> list[Bar]:
    bars = speed_bars(results) + peak_bars(results, peak)
    if disturbances:
        worst = max(each.slowdown(FUSED) for each in disturbances)
        bars.append(at_most("slowdown with one core busy", 3.0, worst))
    return bars + accuracy_bars(results)
