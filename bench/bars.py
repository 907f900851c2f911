"""The project's own bars on the CPU, and whether a run meets them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from . import summary, units
from .providers import BASELINE, FUSED
from .report import make_table, show_table
from .results import Result, Run, geometric_mean
from .workloads import (
    BFLOAT16,
    CELL,
    DENSE,
    DOUBLE,
    GRID,
    INFERENCE,
    TRAINING,
    Workload,
)

NOISE = 0.97  # a bar of "never slower" allows this much
# One AVX-512 unit does 16 float32 multiply-adds a cycle, and no processor runs at more than 6 GHz:
# a rate above 2 x 16 x 6e9 operations a second and core takes two units.
ONE_UNIT_FLOPS = 192e9
# nn.LSTM computes on denormals where the gradient fades; it takes this much longer where they cost.
SLOW_DENORMALS = 2.0


# One of each kind of call that PyTorch's own LSTM takes another way.
FALLBACK_ROWS = (
    "single",
    "small",
    "small, packed",
    "small, float16",
    "medium, projected",
    "medium, float64",
    "pyannet",
    "step",
)


@dataclass(frozen=True)
class Bar:
    what: str
    wanted: str
    shown: str
    met: bool | None  # None: this processor cannot measure it


def at_least(what: str, wanted: float, value: float) -> Bar:
    return Bar(what, f"at least {wanted:g}", units.times(value), value >= wanted)


def at_most(what: str, wanted: float, value: float) -> Bar:
    return Bar(what, f"at most {wanted:g}", units.times(value), value <= wanted)


def without_amx(what: str, wanted: float) -> Bar:
    return Bar(what, f"at least {wanted:g}", "not measured: no AMX", None)


def share_at_least(what: str, wanted: float, value: float) -> Bar:
    return Bar(what, f"at least {units.percent(wanted)}", units.percent(value), value >= wanted)


def extra_providers(workload: Workload, mode: str) -> list[str]:
    """What the bars compare fused_lstm with besides nn.LSTM."""
    names = []
    if workload.batch == 1 and workload.steps >= 50 and workload.group == DENSE:
        names.append("one-thread")
    if workload.packed:
        names.append("packing")
    if workload.name == "medium" and mode == TRAINING:
        names += ["cells", "recompute"]
    if workload.name == "square":
        names.append("tf32")
    if workload.name == "single, long" and mode == INFERENCE:
        names.append("bf16")
    if workload.name == "square, bfloat16" and mode == TRAINING:
        names.append("autocast")
    if workload.name == "vmap of 16":
        names.append("whole")
    if workload.name == "atari" and mode == TRAINING:
        names += ["pointwise", "fused-compile"]
    if workload.name in FALLBACK_ROWS:
        names.append("fallback")
    return names


def brgemm_bar(workload: Workload, mode: str) -> float | None:
    """The share of oneDNN's micro-kernel that a row has to reach."""
    hidden = max(workload.hidden)
    if workload.group not in (DENSE, GRID) or workload.batch < 8:
        return None
    if 512 <= hidden <= 640:
        return {INFERENCE: 0.90, TRAINING: 0.85}.get(mode)
    if 256 <= hidden <= 384:
        return {INFERENCE: 0.80, TRAINING: 0.72}.get(mode)
    return None


# Rounds, at least, of rows whose bar lies within some percent of equality, and times the budget of
# others. On a shared host the quartiles of a round's ratio lie up to a quarter apart; the median of
# n is then off by 1.25 x 0.25 / 1.35 / sqrt(n) (the standard error of a median of normal numbers):
# by a tenth with 5 rounds, by 4 % with 30.
CLOSE_ROUNDS, CLOSE_BUDGETS = 30, 5


def is_close(mode: str, names: Collection[str]) -> bool:
    """Whether one of the providers with these names has such a bar."""
    wanted = {"fallback", "fused-compile", "whole"}
    if mode == TRAINING:
        wanted |= {"lengths"}
    return not wanted.isdisjoint(names)


def ratios(results: list[Result], keep: Callable[[Result], bool]) -> list[float]:
    return [r.faster().median for r in results if keep(r) and r.faster()]


def never_slower(run: Run) -> Iterator[Bar]:
    """The slowest row of each kind of float that nn.LSTM computes in this precision."""
    for dtype in (torch.float32, torch.float64, torch.float16):
        found = ratios(run.results, lambda r, dtype=dtype: r.workload.dtype == dtype)
        if found:
            name = str(dtype).removeprefix("torch.")
            yield at_least(f"slowest row, {name}", NOISE, min(found))


def group_means(run: Run, group: str, wanted: dict[str, float], where: str) -> Iterator[Bar]:
    """Geometric mean of a group in each mode."""
    for mode, bar in wanted.items():
        found = ratios(run.results, lambda r, m=mode: r.workload.group == group and r.mode == m)
        if found:
            yield at_least(f"mean, {group}, {mode}, {where}", bar, geometric_mean(found))


def dense_means(run: Run) -> Iterator[Bar]:
    """Means of the dense rows: under a cap to AVX2, or on Intel's AVX-512."""
    facts = run.environment
    if facts["isa_cap"] == "avx2":
        wanted = {INFERENCE: 1.1, TRAINING: 1.3}
        yield from group_means(run, DENSE, wanted, "both capped to AVX2")
    elif "GenuineIntel" in facts["cpu_kind"] and "avx512" in (facts["isa"] or ""):
        yield from group_means(run, DENSE, {INFERENCE: 1.25, TRAINING: 1.6}, "Intel AVX-512")


def brgemm_shares(run: Run) -> Iterator[Bar]:
    """The row that stays furthest below its share of oneDNN's micro-kernel, for each share."""
    worst: dict[tuple[str, float], tuple[float, Result]] = {}
    for result in run.results:
        wanted, share = brgemm_bar(result.workload, result.mode), result.brgemm_share()
        if wanted and share:
            found = (share, result)
            key = (result.mode, wanted)
            worst[key] = min(worst.get(key, found), found, key=lambda pair: pair[0])
    for (mode, wanted), (share, result) in worst.items():
        yield share_at_least(f"of brgemm, {mode}, {result.workload.name}", wanted, share)


def single_rows(run: Run) -> Iterator[Bar]:
    """B = 1, T >= 50, on two threads."""
    for r in run.results:
        if r.workload.batch != 1 or r.workload.steps < 50 or r.workload.group != DENSE:
            continue
        name = f"{r.workload.name}, {r.mode}"
        if r.threads == 2 and r.faster():
            yield at_least(name, 1.5, r.faster().median)
            yield at_most(f"{name}: quartile over median", 1.2, r.time().high / r.time().median)
        if one := r.faster("one-thread"):
            yield at_least(f"{name}: over one thread", NOISE, one.median)


def last_step(run: Run) -> Iterator[Bar]:
    """A loss of the last step, beside the same with all steps in the loss."""
    rows = {r.workload.name: r for r in run.results if r.mode == TRAINING}
    last, every = rows.get("hydrology"), rows.get("hydrology, all steps")
    if last is None or every is None or not (last.time() and every.time()):
        return
    ours = last.time().median / every.time().median
    yield at_most("last-step loss over all-step loss", 1.15, ours)
    if last.time(BASELINE) and every.time(BASELINE):
        theirs = last.time(BASELINE).median / every.time(BASELINE).median
        if theirs > SLOW_DENORMALS:
            yield at_least("last-step loss, where denormals are slow", 8, last.faster().median)


def float64_shares(run: Run) -> Iterator[Bar]:
    """Share of the multiply-add peak."""
    facts = run.environment["machine"]
    for r in run.results:
        share = r.share(FUSED)
        if facts and share and r.workload.group == DOUBLE and r.limit.by == "multiply-adds":
            wanted = 0.60 if facts["flops"] / r.threads > ONE_UNIT_FLOPS else 0.70
            yield share_at_least(f"of the float64 peak, {r.workload.name}, {r.mode}", wanted, share)


def cells_and_steps(run: Run) -> Iterator[Bar]:
    if found := ratios(run.results, lambda r: r.workload.group == CELL):
        yield at_least("slowest LSTMCell", NOISE, min(found))
    for r in run.results:
        if r.workload.name == "cell, 1 x 128" and r.faster():
            yield at_least(f"LSTMCell, B=1, H=128, {r.mode}", 1.3, r.faster().median)
        if r.workload.name in ("step", "step, 32") and r.faster():
            name = f"one step through the module, B=1, H={r.workload.input}"
            yield at_least(name, 6, r.faster().median)


def busy(run: Run) -> Iterator[Bar]:
    for each in run.disturbances:
        if FUSED in each.slowdowns:
            worst = {name: max(values) for name, values in each.slowdowns.items()}
            yield at_most(each.workload.name, 3, worst[FUSED])
            if BASELINE in worst:
                what = f"{each.workload.name}: over nn.LSTM's worst"
                yield at_most(what, 1, worst[FUSED] / worst[BASELINE])


AMX_MEANS = {INFERENCE: 1.5, TRAINING: 2.0}
AMX_SLOWEST, AMX_TF32 = 1.0, 1.7


def bfloat16(run: Run) -> Iterator[Bar]:
    """How much is asked of the bfloat16 rows depends on the processor's units."""
    rows = [r for r in run.results if r.workload.group == BFLOAT16]
    slowest = "slowest row, bfloat16, AMX"
    if run.environment["amx"]:
        yield from group_means(run, BFLOAT16, AMX_MEANS, "AMX")
        if found := ratios(rows, lambda r: True):
            yield at_least(slowest, AMX_SLOWEST, min(found))
        return
    for mode, wanted in AMX_MEANS.items():
        if any(r.mode == mode for r in rows):
            yield without_amx(f"mean, {BFLOAT16}, {mode}, AMX", wanted)
    if rows:
        yield without_amx(slowest, AMX_SLOWEST)
    if run.environment["isa"] == "avx512_bf16":
        yield from group_means(run, BFLOAT16, {INFERENCE: 1.0, TRAINING: 1.5}, "AVX512-BF16")


def own_settings(run: Run) -> Iterator[Bar]:
    """fused_lstm in reduced precision over itself; autocast over bfloat16 itself."""
    for r in run.results:
        name = f"{r.workload.name}, {r.mode}"
        if tf32 := r.faster("tf32"):
            what = f'{name}: "tf32" over "ieee"'
            amx = run.environment["amx"]
            yield at_least(what, AMX_TF32, 1 / tf32.median) if amx else without_amx(what, AMX_TF32)
        if bf16 := r.faster("bf16"):
            yield at_least(f'{name}: "bf16" over "ieee"', 1.6, 1 / bf16.median)
        if autocast := r.faster("autocast"):
            yield at_most(f"{name}: autocast over bfloat16", 1.15, autocast.median)


# Times faster than nn.LSTM, in rows with these names.
LENGTHS = {"pyannet, packed": 3.0, "pyannet, half to all": 3.0}  # in training
STREAMS = {"step": 8.0, "predictor, 1": 4.0, "predictor, 16": 2.5}
RESETS_OVER_LOOP = {"rl_resets, 8": 8.0}  # in training
# fused_lstm on the same rows without padding: already packed, or packed and padded again.
SAME_ROWS = {FUSED: "packed", "packing": "packing"}
# fused_lstm's time with an option over its time without.
OPTIONS = {"resets": 1.1, "cells": 1.1, "recompute": 1.4}


def sequences(run: Run) -> Iterator[Bar]:
    """What a call may say of its sequences, or ask of them, beside nn.LSTM."""
    for r in run.results:
        name = f"{r.workload.name}, {r.mode}"
        for option, wanted in (("lengths", LENGTHS), ("stream", STREAMS)):
            asked = r.workload.name in wanted and (option == "stream" or r.mode == TRAINING)
            if asked and (faster := r.faster(BASELINE, option)):
                yield at_least(f"{name}: {option}", wanted[r.workload.name], faster.median)
        for other in (FUSED, "packing"):
            if r.mode == TRAINING and (faster := r.faster(other, "lengths")):
                yield at_least(f"{name}: lengths over {SAME_ROWS[other]}", NOISE, faster.median)
        asked = r.workload.name in RESETS_OVER_LOOP and r.mode == TRAINING
        if asked and (faster := r.faster("reset-loop", "resets")):
            wanted = RESETS_OVER_LOOP[r.workload.name]
            yield at_least(f"{name}: resets over a call a step", wanted, faster.median)
        for option, wanted in OPTIONS.items():
            if (taken := r.faster(option)) and r.mode == TRAINING:
                yield at_most(f"{name}: {option} over without", wanted, taken.median)


# Times faster than nn.LSTM, member after member. However few calls run them, the products of
# 32 samples are 2 x 32 x 50 x 4 x 128 x (3 x (64 + 128) - 64) = 0.84 GFLOP, the input's gradient
# left out: 3.6 ms at a peak of 235 GFLOP/s, where the loop takes 32 to 49 ms.
MEMBERS_BARS = {"ensemble of 8": 2.0, "per sample": 10.0}


def transforms(run: Run) -> Iterator[Bar]:
    """Under torch.vmap and torch.compile, and without the extension."""
    fallback = []
    for r in run.results:
        if whole := r.faster("whole"):
            yield at_least(f"{r.workload.name}: over one call", 0.9, whole.median)
        if r.workload.name in MEMBERS_BARS and r.faster():
            yield at_least(r.workload.name, MEMBERS_BARS[r.workload.name], r.faster().median)
        if over_eager := r.faster("pointwise", "fused-compile"):
            seconds = r.measurements["fused-compile"].setup_seconds
            yield at_most("torch.compile, 128 steps: seconds of the first call", 20, seconds)
            yield at_least("torch.compile, 128 steps: over eager", NOISE, over_eager.median)
        if slower := r.faster("fallback", BASELINE):
            fallback.append(slower.median)
    if fallback:
        yield at_most("slowest fallback over nn.LSTM", 1.05, max(fallback))


def accuracy(run: Run) -> Iterator[Bar]:
    """Error against float64 over the one that the tests allow, for the worst row."""
    for mode, (share, result) in summary.worst_errors(run.results).items():
        yield at_most(f"error over what is allowed, {mode}, {result.workload.name}", 1.0, share)


def all_bars(run: Run) -> list[Bar]:
    """Those that the run has measured."""
    if run.environment["device"] != "cpu":
        return []
    parts = (
        never_slower,
        dense_means,
        brgemm_shares,
        single_rows,
        last_step,
        float64_shares,
        cells_and_steps,
        busy,
        bfloat16,
        own_settings,
        sequences,
        transforms,
        accuracy,
    )
    return [bar for part in parts for bar in part(run)]


def bars_table(bars: list[Bar]) -> Table:
    table = make_table("Bars of the project")
    table.add_column("what")
    for heading in ("bar", "measured", "met"):
        table.add_column(heading, justify="right")
    answers = {True: "yes", False: "[bold red]no", None: "-"}
    for bar in bars:
        table.add_row(bar.what, bar.wanted, bar.shown, answers[bar.met])
    return table


def show_bars(console: Console, bars: list[Bar]) -> None:
    if bars:
        show_table(console, bars_table(bars))
    else:
        console.print("None of the project's bars was measured.")
