"""The CUDA layer's own source (csrc/cuda/layer) without a GPU: its kernels run on the emulator.

`cuda_host/layer_ops.cpp` makes ops of it that take CPU tensors. What is covered here is what lies
between the op and the kernels: shapes, strides, offsets, buffers, which product goes where.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import oracle
import pytest
import torch
from cuda_calls import ALGORITHMS, PACKED, REVERSE, Call, check_exact

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


@pytest.fixture(scope="session")
def ops(tmp_path_factory: pytest.TempPathFactory):
    """torch.ops.fused_lstm_emulated, compiled."""
    from torch.utils import cpp_extension

    layer = ROOT / "csrc" / "cuda" / "layer"
    sources = [
        *(ROOT / "tests" / "cuda_host").glob("layer_*.cpp"),
        ROOT / "tests" / "cuda_host" / "emulator.cpp",
        ROOT / "tests" / "cuda_host" / "stores.cpp",
        *(ROOT / "csrc" / "cuda").glob("*.cpp"),
        ROOT / "csrc" / "checks.cpp",
        *(layer / f"{name}.cpp" for name in ("layer", "forward", "backward", "steps")),
    ]
    cpp_extension.load(
        "fused_lstm_emulated",
        [str(path) for path in sources],
        extra_include_paths=[
            str(ROOT / folder) for folder in ("csrc", "csrc/cuda", "tests/cuda_host")
        ],
        extra_cflags=["-O1", "-w", "-DFUSED_LSTM_HOST_EMULATION", "-fvisibility=hidden"],
        extra_ldflags=["-Wl,-Bsymbolic"],
        build_directory=str(tmp_path_factory.mktemp("layer_host")),
        with_cuda=False,
        is_python_module=False,
    )
    return torch.ops.fused_lstm_emulated


@pytest.fixture(params=ALGORITHMS)
def algorithm(request, monkeypatch) -> str:
    monkeypatch.setenv("FUSED_LSTM_CUDA_ALGORITHM", request.param)
    return request.param


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
    names = ["y", "h_n", "c_n", "x", "h0", "c0"] + [f"weight {i}" for i in range(8)]
    three = zip(names, call.fused(ops), call.theirs(), call.exact(), strict=True)
    for i, (name, ours, theirs, exact) in enumerate(three):
        oracle.assert_as_accurate(ours, theirs, exact, factor=2 if i < 3 else 3, what=name)


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


@pytest.mark.parametrize("proj", [0, 2])
@pytest.mark.parametrize("given", [0, 1, 2])
def test_each_output_gradient_alone(ops, algorithm, proj, given):
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


def test_more_offsets_than_one_launch_takes(ops, monkeypatch):
    monkeypatch.setenv("FUSED_LSTM_CUDA_ALGORITHM", "block")
    check_exact(Call(sizes=[2] * 600 + [1] * 400, hidden=2, inputs=1), ops)


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
