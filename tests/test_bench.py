"""The benchmark: what it runs, how it times that, and what it calls wrong."""

from dataclasses import replace

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

pytest.importorskip("rich")

import bench_fakes
from bench_fakes import TINY

from bench import (
    members,
    passes,
    runner,
)
from bench.problem import make_problem, rows_of
from bench.providers import BASELINE, FUSED, PROVIDERS, Prepared
from bench.runner import Row
from bench.sequences import ResetsChain, ResetsLoopChain
from bench.workloads import (
    BFLOAT16,
    DENSE,
    DOUBLE,
    FLOAT16,
    INFERENCE,
    MODES,
    PACKED,
    PROJECTION,
    TRAINING,
    Workload,
    cpu_workloads,
    quick_workloads,
)
from fused_lstm import _ops

BOTH = [PROVIDERS[BASELINE], PROVIDERS[FUSED]]


@pytest.fixture(autouse=True)
def _one_call_a_round(monkeypatch):
    bench_fakes.one_call_a_round(monkeypatch)


# What is run


@pytest.mark.parametrize("row", quick_workloads(), ids=lambda row: row.name)
def test_input_and_parameters_are_as_the_row_says(row):
    problem = make_problem(row, 2)
    assert isinstance(problem.x, PackedSequence) == row.packed
    assert rows_of(problem.x).shape[-1] == row.input
    assert all(p.dtype == row.dtype for p in problem.parameters.values())
    assert torch.equal(rows_of(problem.x), rows_of(make_problem(row, 2).x))


SMALL = [
    TINY,
    Workload("last", DENSE, 3, 4, 5, (6,), last_step=True),
    Workload("last, batch first", DENSE, 3, 4, 5, (6,), last_step=True, batch_first=True),
    Workload("deep", DENSE, 3, 4, 5, (6, 7), layers=2),
    Workload("both", DENSE, 3, 4, 5, (6,), bidirectional=True, batch_first=True),
    Workload("packed", PACKED, 3, 9, 5, (6,), packed=True),
    Workload("packed, batch first", PACKED, 3, 9, 5, (6,), packed=True, batch_first=True),
    Workload("packed, both", PACKED, 3, 9, 5, (6,), packed=True, bidirectional=True),
    Workload("projected", PROJECTION, 3, 4, 5, (6,), proj=2),
    Workload("cell", DENSE, 3, 4, 5, (6,), cell=True),
    Workload("float64", DOUBLE, 3, 4, 5, (6,), dtype=torch.float64),
    Workload("bfloat16", BFLOAT16, 3, 4, 5, (6,), dtype=torch.bfloat16),
    Workload("float16", FLOAT16, 3, 4, 5, (6,), dtype=torch.float16),
    Workload("steps", DENSE, 3, 1, 5, (6,), calls=3, modes=(INFERENCE,)),
    Workload("vmap", DENSE, 6, 4, 5, (6,), members=3),
    Workload("ensemble", DENSE, 6, 4, 5, (6,), members=3, ensemble=True, modes=(TRAINING,)),
]


def small(name):
    return next(row for row in SMALL if row.name == name)


COMPILED = {"compile", "script", "fused-compile"}  # take seconds; have a test of their own


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", SMALL, ids=lambda row: row.name)
def test_every_provider_computes_the_same(row, mode):
    """Outputs, and all gradients under the names that nn.LSTM has for them."""
    if mode not in row.modes:
        pytest.skip("the row has no such mode")
    names = [n for n, p in PROVIDERS.items() if n not in COMPILED and not p.why_not(row, mode)]
    measured = Row(row, 1).measure(mode, [PROVIDERS[name] for name in names], budget=0)
    assert set(measured.measurements) == set(names)
    for name, each in measured.measurements.items():
        assert not each.failed, f"{name}: {each.failed}"
        assert len(each.seconds) >= runner.LEAST_ROUNDS


def test_what_is_timed_of_members_gives_the_same_tensors():
    problem = make_problem(small("vmap"), 1)
    (mapped, _), (looped, _) = (
        prepare(problem, INFERENCE) for prepare in (members.prepare_mapped, members.prepare_loop)
    )
    torch.testing.assert_close(looped(), mapped())


@pytest.mark.parametrize("ensemble", [False, True])
def test_gradients_of_every_member_are_its_own(ensemble):
    """The sum over members, which is what a row checks, hides whose is whose."""
    problem = make_problem(Workload("row", DENSE, 6, 4, 5, (6,), members=3, ensemble=ensemble), 1)
    mapped = members.prepare_mapped(problem, TRAINING)[0]()
    looped = members.prepare_loop(problem, TRAINING)[0]()
    for name, each in zip(problem.parameters, zip(*looped, strict=True), strict=True):
        torch.testing.assert_close(mapped[name], torch.stack(each))


def test_the_parts_of_members_join_to_the_batch():
    x = torch.arange(2.0 * 6 * 5).view(2, 6, 5)
    parts = members.parts(x, 3)
    assert parts.shape == (3, 2, 2, 5)
    assert torch.equal(parts[1], x[:, 2:4])
    assert torch.equal(members.joined(parts), x)


def test_what_cannot_have_members_leaves_their_rows_alone():
    row = Workload("row", DENSE, 6, 4, 5, (6,), members=3)
    assert not PROVIDERS["whole"].why_not(row, INFERENCE)
    for name in ("linear", "script", "compile", "pointwise", "resets", "cells", "onnxruntime"):
        assert PROVIDERS[name].why_not(row, INFERENCE), name
    for name in ("recompute", "whole"):
        assert PROVIDERS[name].why_not(row, TRAINING), name
    assert PROVIDERS["whole"].why_not(TINY, INFERENCE)


def test_the_fallback_is_on_only_inside(extension):
    provider = PROVIDERS["fallback"]
    with provider.settings():
        assert _ops.unavailable("cpu", torch.float32) == "disabled by FUSED_LSTM_DISABLE"
        assert _ops.disabled()
    assert _ops.unavailable("cpu", torch.float32) is None
    assert not _ops.disabled()


def test_training_compares_every_gradient():
    for name in (BASELINE, FUSED, "linear"):
        problem = make_problem(TINY, 1)
        gradients = PROVIDERS[name].prepare(problem, TRAINING).check()
        assert set(gradients) == {"x", *problem.parameters}
        assert all(g.abs().max() > 0 for g in gradients.values())


def test_padded_input_gives_the_gradients_of_packed_input():
    problem = make_problem(small("packed"), 1)
    padded = PROVIDERS["padded"].prepare(problem, TRAINING).check()
    packed = PROVIDERS[BASELINE].prepare(problem, TRAINING).check()
    assert set(padded) == set(packed)
    for name in packed:
        torch.testing.assert_close(padded[name], packed[name])


def test_inference_records_no_gradient_and_forward_does():
    problem = make_problem(TINY, 1)
    for mode, recorded in ((INFERENCE, False), ("forward", True)):
        outputs = PROVIDERS[BASELINE].prepare(problem, mode).check()
        assert outputs["y"].requires_grad is recorded


def test_providers_leave_rows_alone_that_they_cannot_run():
    packed, cell = small("packed"), small("cell")
    assert not PROVIDERS["padded"].why_not(packed, INFERENCE)
    assert PROVIDERS["padded"].why_not(TINY, INFERENCE)
    assert PROVIDERS["float32"].why_not(TINY, INFERENCE)
    assert PROVIDERS["linear"].why_not(packed, INFERENCE)
    assert PROVIDERS["compile"].why_not(cell, INFERENCE)
    assert "50 steps" in PROVIDERS["compile"].why_not(replace(TINY, steps=51), INFERENCE)
    for name in ("onnxruntime", "openvino"):
        assert PROVIDERS[name].why_not(TINY, TRAINING)


def test_an_engine_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "not installed: onnx" in PROVIDERS["openvino"].why_not(TINY, INFERENCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COMPILED))
def test_compiled_lstms_compute_the_same(name):
    measured = Row(TINY, 1).measure(INFERENCE, [PROVIDERS[name]], budget=0)
    compiled = measured.measurements[name]
    assert not compiled.failed
    assert compiled.setup_seconds > 0


# Timing


def test_thread_count_is_put_back():
    before = torch.get_num_threads()
    seen = []
    one = replace(PROVIDERS["one-thread"], prepare=spy_threads(seen))
    Row(TINY, 2).measure(INFERENCE, [*BOTH, one], budget=0)
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def spy_threads(seen):
    def prepare(problem, mode):
        right = PROVIDERS[FUSED].prepare(problem, mode)

        def run():
            seen.append(torch.get_num_threads())
            right.run()

        return Prepared(run, right.check)

    return prepare


def test_steps_carry_their_state():
    problem = make_problem(small("steps"), 1)
    states = []

    class Model:
        def step(self, x, state):
            states.append(state)
            return x, len(states)

    passes.make_timed(Model(), problem, INFERENCE)()
    assert states == [None, 1, 2]


def test_modes_are_the_ones_that_means_are_taken_over():
    assert all(set(row.modes) <= set(MODES) for row in cpu_workloads())


def test_episodes_are_of_some_thirty_steps():
    row = Workload("row", DENSE, 64, 200, 4, (4,))
    assert 0.025 < ResetsChain(row).mask.float().mean() < 0.035


def test_resets_compute_what_a_call_a_step_computes():
    problem = make_problem(TINY, 1)
    chains = [chain(TINY) for chain in (ResetsChain, ResetsLoopChain)]
    assert chains[0].mask.any()
    for chain in chains:
        chain.load(problem.parameters)
    (y, [(h, c)]), (expected, [(expected_h, expected_c)]) = (chain(problem.x) for chain in chains)
    torch.testing.assert_close((y, h, c), (expected, expected_h, expected_c))
