"""The CUDA kernels on a GPU. Every other test that takes `device` runs there as well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import oracle
import pytest
import torch
from cuda_calls import ALGORITHMS, PACKED, REVERSE, Call

import fused_lstm
from bench.gpu.cases import LARGEST, checker, checkers
from fused_lstm import _ops

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        _ops.extension is None or not _ops.extension.build_info()["cuda"],
        reason="the extension is built without CUDA",
    ),
]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DTYPE_IDS = ["fp32", "fp64", "bf16", "fp16"]


@pytest.fixture(params=ALGORITHMS)
def algorithm(request, monkeypatch) -> Iterator[str]:
    """One algorithm is asked for, which is an error where it cannot run, and is what has run."""
    ask_for(request.param, monkeypatch)
    yield request.param
    check_ran(request.param)


def ask_for(algorithm: str, monkeypatch) -> None:
    monkeypatch.setenv("FUSED_LSTM_CUDA_ALGORITHM", algorithm)
    monkeypatch.setenv("FUSED_LSTM_STRICT", "1")


def check_ran(algorithm: str) -> None:
    ran = _ops.extension.cuda_last_run()
    assert [ran[name]["algorithm"] for name in ("forward", "backward")] == [algorithm] * 2


@pytest.fixture
def ops():
    return torch.ops.fused_lstm


def check(call: Call, ops) -> None:
    names = [*Call.NAMES, *(f"gradient of weight {i}" for i in range(len(call.weights)))]
    three = zip(names, call.fused(ops), call.theirs(), call.exact(), strict=True)
    for name, ours, theirs, exact in three:
        oracle.assert_as_accurate(ours, theirs, exact, name)


def sizes() -> list[tuple[str, str, int]]:
    """Algorithm, dtype and hidden sizes up to the largest that an H100 takes, both passes.

    test_cuda_plan.py asks the planner whether it does.
    """
    found = []
    for algorithm in ALGORITHMS:
        for dtype in ("float32", "float64", "bfloat16", "float16"):
            largest = LARGEST[algorithm][dtype]
            smaller = [h for h in (1, 17, 64, 160, 250, 500) if h < largest]
            found += [(algorithm, dtype, hidden) for hidden in (*smaller, largest)]
    return found


@pytest.mark.parametrize(("chosen", "dtype", "hidden"), sizes())
def test_as_accurate_as_cudnn(ops, monkeypatch, chosen, dtype, hidden):
    ask_for(chosen, monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    kind = getattr(torch, dtype)
    check(Call(steps=30, batch=19, inputs=33, hidden=hidden, dtype=kind, device="cuda"), ops)
    check_ran(chosen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_weight_gradients_of_many_rows(ops, dtype):
    """Sums over 16,384 rows are kept in float32, also where the product cuts them into parts."""
    check(Call(steps=512, batch=32, inputs=96, hidden=128, dtype=dtype, device="cuda"), ops)


def test_the_plan_is_what_ran(ops, algorithm):
    """What `explain` prints, also under the switch, and what a call reports afterwards."""
    Call(steps=30, batch=40, inputs=8, hidden=64, dtype=torch.bfloat16, device="cuda").fused(ops)
    facts = _ops.extension.plan(
        steps=30, batch=40, input_size=8, hidden_size=64, dtype="bfloat16", device="cuda",
        training=True,
    )  # fmt: skip
    ran = _ops.extension.cuda_last_run()
    assert ran["arithmetic"] == facts["arithmetic"] == "bf16"
    for key, value in ran["forward"].items():
        assert facts[key] == value
    for key, value in ran["backward"].items():
        assert facts[f"backward_{key}"] == value


@pytest.mark.parametrize("allow_tf32", [False, True])
def test_tf32_only_where_pytorch_allows_it(ops, algorithm, allow_tf32, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allow_tf32)
    call = Call(steps=30, batch=16, inputs=64, hidden=96, dtype=torch.float32, device="cuda")
    error = (call.fused(ops)[0].double() - call.exact()[0]).abs().max().item()
    assert (error > 2e-6) == allow_tf32


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("reverse", [(False,), (False, True)], ids=str)
def test_packed(ops, algorithm, dtype, reverse):
    check(Call(sizes=PACKED, reverse=reverse, hidden=40, dtype=dtype, device="cuda"), ops)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("reverse", [(False,), (False, True)], ids=str)
@pytest.mark.parametrize("sizes", [None, PACKED], ids=["dense", "packed"])
def test_projected(ops, dtype, reverse, sizes):
    """Runs step by step whatever the size."""
    check(Call(sizes=sizes, reverse=reverse, hidden=40, proj=9, dtype=dtype, device="cuda"), ops)
    check_ran("steps")


@pytest.mark.parametrize("sizes", [None, PACKED], ids=["dense", "packed"])
@pytest.mark.parametrize("reverse", REVERSE, ids=str)
def test_twice_the_same_bits(ops, algorithm, sizes, reverse):
    hidden = {"block": 128, "cluster": 256}.get(algorithm, 500)
    call = Call(
        steps=50, batch=70, inputs=64, hidden=hidden, sizes=sizes, reverse=reverse,
        dtype=torch.bfloat16, device="cuda",
    )  # fmt: skip
    first = call.fused(ops)
    for _ in range(5):
        for one, again in zip(first, call.fused(ops), strict=True):
            assert torch.equal(one, again)


def test_nothing_waits_for_the_device(ops, algorithm):
    call = Call(sizes=PACKED, dtype=torch.bfloat16, device="cuda")
    call.fused(ops)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    busy = torch.cuda.Event()
    busy.record()
    call.issue(ops)
    assert not busy.query(), "the ops returned only after the device was done"


def test_the_callers_stream(ops, algorithm):
    call = Call(steps=50, batch=16, hidden=64, dtype=torch.bfloat16, device="cuda")
    expected = call.fused(ops)
    x, stream = call.x.clone(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        call.x = torch.zeros_like(x)
        torch.cuda._sleep(200_000_000)
        call.x.copy_(x)  # a kernel on any other stream would read the zeros
        result = call.fused(ops)
    stream.synchronize()
    for one, other in zip(expected, result, strict=True):
        assert torch.equal(one, other)


def test_two_streams_at_once(ops, algorithm):
    """Two cooperative grids that want the whole device must not wait for each other for ever."""
    hidden = {"block": 128, "cluster": 256}.get(algorithm, 1024)
    calls = [
        Call(steps=200, batch=64, inputs=32, hidden=hidden, dtype=torch.bfloat16, device="cuda")
        for _ in range(2)
    ]
    expected = [call.issue(ops) for call in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    results = []  # of 10 calls that are under way at once, 5 behind one another on each stream
    for _ in range(5):
        for call, stream in zip(calls, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(call.issue(ops))
    torch.cuda.synchronize()
    for i, got in enumerate(results):
        for one, other in zip(expected[i % 2], got, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("sizes", [None, PACKED], ids=["dense", "packed"])
def test_cuda_graph(ops, algorithm, sizes):
    """Forward and backward in one graph, replayed on new input."""
    options = dict(steps=20, hidden=64, sizes=sizes, dtype=torch.bfloat16, device="cuda")
    call, other = Call(**options), Call(**options)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call.issue(ops)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call.issue(ops)
    call.x.copy_(other.x)
    graph.replay()
    for one, wanted in zip(captured, call.issue(ops), strict=True):
        assert torch.equal(one, wanted)


def test_graphed_module():
    module = fused_lstm.LSTM(32, 64, num_layers=2, device="cuda")
    x = torch.randn(40, 8, 32, device="cuda", requires_grad=True)
    expected = module(x)[0]
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    graphed = torch.cuda.make_graphed_callables(module, (x.detach().clone().requires_grad_(),))
    y = graphed(x)[0]
    assert torch.equal(y, expected)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], gradient)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_a_device_that_is_not_current(ops, algorithm):
    call = Call(steps=30, hidden=64, dtype=torch.bfloat16, device="cuda:1")
    other = Call(steps=30, hidden=64, dtype=torch.bfloat16, device="cuda:0")
    assert call.fused(ops)[0].device.index == 1
    assert other.fused(ops)[0].device.index == 0
    check(call, ops)


SANITIZED = """
import torch
from cuda_calls import PACKED, Call
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for options in (dict(hidden=9), dict(hidden=33, batch=19), dict(sizes=PACKED, hidden=17)):
        options.update(reverse=(False, True), inputs=3, steps=20, dtype=dtype, device="cuda")
        call = Call(**options)
        call.fused(torch.ops.fused_lstm)
torch.cuda.synchronize()
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(algorithm, tool):
    if tool not in checkers(algorithm):
        pytest.skip(f"{tool} reports what {algorithm} does on purpose")
    tests = Path(__file__).parent
    done = subprocess.run(
        [*checker(tool), sys.executable, "-c", "import fused_lstm\n" + SANITIZED],
        capture_output=True,
        text=True,
        timeout=600,
        env={
            **os.environ,
            "PYTHONPATH": f"{tests}:{tests.parent}",
            # Memory that PyTorch keeps for later would hide a read past a tensor's end.
            "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
