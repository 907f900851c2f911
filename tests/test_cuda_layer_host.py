"""The CUDA layer's own source (csrc/cuda/layer) without a GPU: its kernels run on the emulator.

`cuda_host/layer_ops.cpp` makes ops of it that take CPU tensors. What is covered here is what lies
between the op and the kernels: shapes, strides, offsets, buffers, which product goes where.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import oracle
import pytest
import torch
from cuda_calls import ALGORITHMS, PACKED, REVERSE, Call, check_exact
from cuda_emulated import build_ops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


@pytest.fixture(scope="session")
def ops():
    """torch.ops.fused_lstm_emulated, compiled."""
    build_ops()
    return torch.ops.fused_lstm_emulated


def last_run(ops) -> list[dict[str, str]]:
    """What the last call ran, forward and backward."""
    return [dict(fact.split("=") for fact in text.split()) for text in ops.last_run()]


@pytest.fixture(params=ALGORITHMS)
def algorithm(request, ops, monkeypatch) -> Iterator[str]:
    """One algorithm is asked for, and is what has run in the end."""
    monkeypatch.setenv("FUSED_LSTM_CUDA_ALGORITHM", request.param)
    monkeypatch.setenv("FUSED_LSTM_STRICT", "1")
    yield request.param
    assert [ran["algorithm"] for ran in last_run(ops)] == [request.param] * 2


@pytest.mark.parametrize("reverse", REVERSE, ids=str)
@pytest.mark.parametrize("sizes", [None, PACKED], ids=["dense", "packed"])
@pytest.mark.parametrize("state", [True, False], ids=["state", "zeros"])
def test_float64(ops, algorithm, reverse, sizes, state):
    check_exact(Call(reverse=reverse, sizes=sizes, state=state, bias=state), ops)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("sizes", [None, PACKED], ids=["dense", "packed"])
def test_as_accurate_as_nn_lstm(ops, algorithm, dtype, sizes, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    call = Call(reverse=(False, True), sizes=sizes, dtype=dtype, hidden=17)
    names = [*Call.NAMES, *(f"gradient of weight {i}" for i in range(8))]
    three = zip(names, call.fused(ops), call.theirs(), call.exact(), strict=True)
    for name, ours, theirs, exact in three:
        oracle.assert_as_accurate(ours, theirs, exact, name)


@pytest.mark.parametrize("reverse", REVERSE, ids=str)
@pytest.mark.parametrize("sizes", [None, PACKED], ids=["dense", "packed"])
@pytest.mark.parametrize("state", [True, False], ids=["state", "zeros"])
def test_projection(ops, reverse, sizes, state):
    check_exact(Call(proj=3, reverse=reverse, sizes=sizes, state=state, bias=not state), ops)


@pytest.mark.parametrize("proj", [0, 2])
def test_any_strides_of_x(ops, proj):
    call = Call(steps=6, proj=proj)
    call.x = call.x.transpose(0, 1).contiguous().transpose(0, 1)
    check_exact(call, ops)


@pytest.mark.parametrize("proj", [0, 2])
def test_each_gradient_alone(ops, proj):
    call = Call(steps=6, proj=proj, reverse=(False, True))
    everything = call.fused(ops)[3:]
    for i, whole in enumerate(everything):
        needs = [j == i for j in range(len(everything))]
        *_, alone = call.fused(ops, needs=needs)
        assert torch.equal(alone, whole)


@pytest.mark.parametrize("given", [0, 1, 2])
def test_each_output_gradient_alone(ops, algorithm, given):
    check_output_gradient_alone(ops, 0, given)


@pytest.mark.parametrize("given", [0, 1, 2])
def test_each_output_gradient_alone_projected(ops, given):
    check_output_gradient_alone(ops, 2, given)


def check_output_gradient_alone(ops, proj, given):
    """Gradients that are not given are zeros; each given one counts."""
    call = Call(steps=20, proj=proj, reverse=(False, True))
    absent = [g if i == given else None for i, g in enumerate(call.grads)]
    call.grads = [g if i == given else torch.zeros_like(g) for i, g in enumerate(call.grads)]
    for ours, exact in zip(call.fused(ops, grads=absent), call.exact(), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("steps", "batch"), [(1, 3), (0, 3), (4, 0), (1, 1)])
@pytest.mark.parametrize("proj", [0, 2])
def test_few_steps_and_rows(ops, steps, batch, proj):
    check_exact(Call(steps=steps, batch=batch, proj=proj, reverse=(False, True)), ops)


@pytest.mark.parametrize(
    "sizes",
    [[3], [3] * 700, [2] * 600 + [1] * 400, list(range(600, 0, -1)), list(range(250, 0, -1))],
    ids=["one", "equal", "two", "600 different", "250 different"],
)
def test_offsets(ops, sizes):
    """Also where there are more different numbers of rows than one launch takes."""
    expected = torch.tensor([0, *sizes]).cumsum(0)
    assert torch.equal(ops.offsets(torch.tensor(sizes)), expected)


def test_long_packed_input(ops, monkeypatch):
    monkeypatch.setenv("FUSED_LSTM_CUDA_ALGORITHM", "block")
    check_exact(Call(sizes=[2] * 600 + [1] * 400, hidden=2, inputs=1), ops)


def test_what_ran(ops, monkeypatch):
    """The variant, the slices and the groups that were asked for."""
    monkeypatch.setenv("FUSED_LSTM_CUDA_ALGORITHM", "grid,unit_tiles=2,groups=2")
    Call(batch=40, hidden=40, dtype=torch.bfloat16).fused(ops)
    for ran in last_run(ops):
        assert ran["algorithm"] == "grid"
        assert (ran["unit_tiles"], ran["slices"], ran["groups"]) == ("2", "3", "2")
        assert int(ran["blocks"]) == 6
    monkeypatch.setenv("FUSED_LSTM_CUDA_ALGORITHM", "grid,unit_tiles=1,groups=1")
    Call(batch=40, hidden=40, dtype=torch.bfloat16).fused(ops)
    assert all(ran["variant"] == "0" and ran["blocks"] == "6" for ran in last_run(ops))


def refuse(monkeypatch, kind: str) -> str:
    """What cannot run: too large, not compiled, or refused by the device."""
    asked = {"size": "block", "variant": "grid,unit_tiles=3", "device": "grid"}[kind]
    monkeypatch.setenv("FUSED_LSTM_CUDA_ALGORITHM", asked)
    if kind == "device":
        monkeypatch.setenv("FUSED_LSTM_EMULATOR_REFUSES", "1")
    return {"size": "W_hh|threads", "variant": "no variant", "device": "refuses"}[kind]


@pytest.mark.parametrize("kind", ["size", "variant", "device"])
def test_what_was_asked_for_and_cannot_run_is_an_error(ops, monkeypatch, kind):
    reason = refuse(monkeypatch, kind)
    monkeypatch.setenv("FUSED_LSTM_STRICT", "1")
    with pytest.raises(RuntimeError, match=rf"({reason}).*FUSED_LSTM_STRICT=1"):
        Call(steps=2, hidden=170 if kind == "size" else 9).fused(ops)


def test_a_request_that_is_none(ops, monkeypatch):
    for text in ("gird", "block,groups=1", "grid,groups=0", "grid,unit_tiles", "steps,groups=2"):
        monkeypatch.setenv("FUSED_LSTM_CUDA_ALGORITHM", text)
        # Releases of torch differ in what an op makes of std::invalid_argument.
        with pytest.raises((ValueError, RuntimeError), match="expected block, cluster, grid or s"):
            Call(steps=2).fused(ops)


def test_a_refused_launch_runs_step_by_step(ops, monkeypatch):
    call = Call(reverse=(False, True))
    monkeypatch.setenv("FUSED_LSTM_CUDA_ALGORITHM", "steps")
    expected = call.fused(ops)
    monkeypatch.setenv("FUSED_LSTM_CUDA_ALGORITHM", "grid")
    differs = [not torch.equal(a, b) for a, b in zip(expected, call.fused(ops), strict=True)]
    assert any(differs), "both plans round alike, so this test would see nothing"
    monkeypatch.setenv("FUSED_LSTM_EMULATOR_REFUSES", "1")
    for ours, wanted in zip(call.fused(ops), expected, strict=True):
        assert torch.equal(ours, wanted)
    assert [ran["algorithm"] for ran in last_run(ops)] == ["steps"] * 2


def test_the_schedule_changes_nothing(ops, algorithm, monkeypatch):
    call = Call(batch=20, hidden=17, sizes=PACKED, reverse=(False, True), dtype=torch.bfloat16)
    expected = call.fused(ops)
    for seed in range(1, 4):
        monkeypatch.setenv("FUSED_LSTM_EMULATOR_SEED", str(seed))
        for ours, wanted in zip(call.fused(ops), expected, strict=True):
            assert torch.equal(ours, wanted)


def test_the_biases_have_a_gradient_each(ops):
    call = Call(steps=2)
    *_, b_ih, b_hh = call.fused(ops)
    assert torch.equal(b_ih, b_hh)
    assert b_ih.data_ptr() != b_hh.data_ptr()


def test_stamps_and_watchdog(ops, monkeypatch):
    """A build with instruments says where a poll gives up, and when a step did what."""
    monkeypatch.setenv("FUSED_LSTM_CUDA_ALGORITHM", "grid,unit_tiles=1,groups=1")
    call = Call(steps=6, hidden=20, dtype=torch.bfloat16)
    trace = torch.zeros(8 + 6 * 256, dtype=torch.int64)
    trace[6] = 1 << 40
    try:
        ops.set_trace(trace.data_ptr())
        expected = call.fused(ops)
        stamps = trace[8 : 8 + 6 * 6]
        assert trace[0] == 0
        assert (stamps[1:] > stamps[:-1]).all()
        trace[6] = 0  # gives up at the first poll
        with pytest.raises(RuntimeError, match="trap"):
            call.fused(ops)
        gave_up, block_x, block_y, warp, step, k_tile = trace[:6].tolist()
        assert gave_up == 1
        assert (block_y, k_tile) == (0, 0)
        assert 0 <= block_x < 4
        assert 0 <= warp < 2
        assert 0 <= step < 6
    finally:
        ops.set_trace(0)
    for ours, wanted in zip(call.fused(ops), expected, strict=True):
        assert torch.equal(ours, wanted)
