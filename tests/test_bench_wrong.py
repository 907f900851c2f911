"""The benchmark shows no speed of a result that is wrong, and misses no part of one."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

pytest.importorskip("rich")

import bench_fakes
import oracle
from bench_fakes import TINY

from bench import accuracy
from bench.problem import make_problem
from bench.providers import BASELINE, FUSED, PROVIDERS, Prepared
from bench.runner import Row
from bench.sequences import CellsChain, ResetsChain, StreamChain
from bench.workloads import DENSE, DOUBLE, INFERENCE, MODES, STEPPING, TRAINING, Workload

FLOAT64 = Workload("float64", DOUBLE, 3, 4, 5, (6,), dtype=torch.float64)
STEPS = Workload("steps", STEPPING, 3, 1, 5, (6,), calls=7, modes=(INFERENCE,))
DEEP = Workload("deep", DENSE, 3, 4, 5, (6, 7), layers=2)
BOTH = [PROVIDERS[BASELINE], PROVIDERS[FUSED]]


@pytest.fixture(autouse=True)
def _one_call_a_round(monkeypatch):
    bench_fakes.one_call_a_round(monkeypatch)


def broken(change, name=FUSED):
    """A provider, with its tensors changed."""
    right_one = PROVIDERS[name]

    def prepare(problem, mode):
        right = right_one.prepare(problem, mode)
        return Prepared(right.run, lambda: change(right.check()))

    return replace(right_one, prepare=prepare)


def off_by(factor, key):
    return lambda tensors: tensors | {key: tensors[key] * (1 + factor)}


@pytest.mark.parametrize(("mode", "key"), [(INFERENCE, "y"), (TRAINING, "lstms.0.bias_hh_l0")])
def test_a_wrong_result_has_no_speed(mode, key):
    row = Row(TINY, 1)
    measured = row.measure(mode, [PROVIDERS[BASELINE], broken(off_by(1e-4, key))], budget=0)
    wrong = measured.measurements[FUSED]
    assert wrong.failed.startswith(f"wrong: {key} is off by 1")
    assert not wrong.seconds
    assert wrong.time is None
    assert measured.faster() is None
    assert wrong.error_ratio > 10
    assert measured.measurements[BASELINE].seconds


@pytest.mark.parametrize("dtype", [*accuracy.BASELINE_BOUNDS], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_nn_lstm_excuses_nobody(monkeypatch, mode, dtype):
    """Both are off by as much."""
    row = replace(TINY, dtype=dtype)
    plus_one = lambda tensors: {name: t + 1 for name, t in tensors.items()}  # noqa: E731
    both = [broken(plus_one, name) for name in (BASELINE, FUSED)]
    monkeypatch.setitem(PROVIDERS, BASELINE, both[0])
    measured = Row(row, 1).measure(mode, both, budget=0).measurements
    for each in measured.values():
        assert each.failed.startswith("wrong: ")
        assert not each.seconds
    assert measured[FUSED].error_ratio is None


@pytest.mark.parametrize("tf32", [False, True])
def test_nn_lstm_is_judged_by_the_precision_of_its_row(tf32):
    """A row of float32 in TF32 keeps the bits of float16."""
    for dtype, bound in accuracy.BASELINE_BOUNDS.items():
        row = replace(TINY, dtype=dtype, tf32=tf32 and dtype == torch.float32)
        bound = 0.06 if row.tf32 else bound
        assert not accuracy.why_baseline_wrong({"y": 0.9 * bound}, row)
        assert accuracy.why_baseline_wrong({"h": 0.0, "y": 1.1 * bound}, row).startswith("y is off")
        assert accuracy.why_baseline_wrong({"y": float("nan")}, row)


def test_a_worse_nn_lstm_that_is_right_excuses_as_much():
    theirs = {"y": 9e-5}
    assert not accuracy.why_wrong({"y": 8.9e-4}, theirs, torch.float32, None)
    assert accuracy.why_wrong({"y": 9.1e-4}, theirs, torch.float32, None)


def test_nan_is_wrong():
    measured = Row(TINY, 1).measure(INFERENCE, [broken(off_by(float("nan"), "y"))], budget=0)
    assert measured.measurements[FUSED].failed.startswith("wrong: y is off by nan")


def test_float64_is_judged_too():
    row = Row(FLOAT64, 1)
    measured = row.measure(INFERENCE, [PROVIDERS[BASELINE], broken(off_by(1e-12, "y"))], budget=0)
    assert measured.measurements[FUSED].failed
    assert measured.measurements[BASELINE].error is None  # it is the reference


def test_coarser_arithmetic_is_judged_by_its_own_precision():
    theirs = {"y": 1e-7}
    assert accuracy.why_wrong({"y": 1e-3}, theirs, torch.float32, None)
    assert not accuracy.why_wrong({"y": 1e-3}, theirs, torch.float32, 2.0**-10)


def test_the_coarser_precisions_are_those_that_are_named():
    assert PROVIDERS["bf16"].eps == torch.finfo(torch.bfloat16).eps
    assert PROVIDERS["tf32"].eps == 2.0**-10  # the bits of float16, and float32's exponent


def test_a_provider_that_fails_says_why():
    def prepare(problem, mode):
        raise ValueError("no such thing\nand more")

    failing = replace(PROVIDERS["linear"], prepare=prepare)
    measured = Row(TINY, 1).measure(INFERENCE, [*BOTH, failing], budget=0)
    assert measured.measurements["linear"].failed == "ValueError: no such thing"
    assert measured.faster()


def test_error_ratio_is_of_the_worst_tensor_and_float64_has_none():
    ours, theirs = {"y": 4e-7, "h": 1e-7}, {"y": 2e-7, "h": 1e-9}
    assert accuracy.error_ratio(ours, theirs, torch.float32) == pytest.approx(2.0)
    assert accuracy.error_ratio(ours, theirs, torch.float64) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("elements", [255, 256])
@pytest.mark.parametrize("their_units", [0, 1, 3])
def test_what_is_allowed_is_what_the_tests_allow(dtype, mode, elements, their_units):
    """Just below and just above it, where nn.LSTM's error is so many units in the last place."""
    eps = torch.finfo(dtype).eps
    expected = torch.full((elements,), 2.0, dtype=torch.float64)
    theirs = expected.to(dtype)
    theirs[0] += their_units * 2 * eps
    judged = {"y": expected}
    below = []
    for units in range(20):
        ours = expected.to(dtype)
        ours[-1] += units * 2 * eps
        share = accuracy.share_of_allowed(
            accuracy.errors({"y": ours}, judged),
            accuracy.errors({"y": theirs}, judged),
            judged,
            dtype,
            mode,
        )
        below.append(share <= 1)
        with contextlib.nullcontext() if share <= 1 else pytest.raises(AssertionError):
            what = "gradient" if mode == TRAINING else "y"
            oracle.assert_as_accurate(ours, theirs, expected, what)
    assert True in below
    assert False in below


def why_wrong(row, name, mode=INFERENCE):
    return Row(row, 1).measure(mode, [PROVIDERS[name]], budget=0).measurements[name].failed


@pytest.mark.parametrize("mode", MODES)
def test_resets_that_are_left_out_are_wrong(monkeypatch, mode):
    assert not why_wrong(TINY, "resets", mode)
    monkeypatch.setattr(ResetsChain, "run", lambda self, lstm, x: lstm(x))
    assert why_wrong(TINY, "resets", mode).startswith("wrong: ")
    assert not why_wrong(TINY, "reset-loop", mode)


@pytest.mark.parametrize("mode", MODES)
def test_cells_that_are_none_are_wrong(monkeypatch, mode, extension):
    more = CellsChain.more
    assert not why_wrong(DEEP, "cells", mode)
    changed = lambda self, x: {n: t.roll(1, 0) for n, t in more(self, x).items()}  # noqa: E731
    monkeypatch.setattr(CellsChain, "more", changed)
    assert why_wrong(DEEP, "cells", mode).startswith("wrong: cells of 0 is off")


def test_a_state_that_is_lost_between_calls_is_wrong(monkeypatch, extension):
    """The first step alone is the same."""
    assert not why_wrong(STEPS, "stream")

    def step(self, x, state):
        stream = self.begin(x)
        return stream(x), stream

    monkeypatch.setattr(StreamChain, "step", step)
    assert why_wrong(STEPS, "stream").startswith("wrong: ")


@pytest.mark.parametrize("row", [TINY, DEEP, STEPS], ids=lambda row: row.name)
def test_engines_give_every_state(row):
    pytest.importorskip("onnxruntime")
    problem = make_problem(row, 1)
    found = PROVIDERS["onnxruntime"].prepare(problem, INFERENCE).check()
    expected = PROVIDERS[BASELINE].prepare(problem, INFERENCE).check()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


@pytest.mark.parametrize(("tf32", "expected"), [(False, "ieee"), (True, "tf32")])
def test_a_row_sets_how_cudnn_may_round(tf32, expected):
    setting = torch.backends.cudnn.rnn
    before = setting.fp32_precision
    with Row(replace(TINY, tf32=tf32), 1).settings():
        assert setting.fp32_precision == expected
    assert setting.fp32_precision == before
