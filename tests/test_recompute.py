"""recompute=k: less memory, the same gradients to the last bit."""

import json
import os
import subprocess
import sys

import pytest
import torch
from cases import DTYPE_IDS, DTYPES, Case

import fused_lstm

# Products of gradients are batched over 1024 / B steps: 2 here, so that there are several batches.
CASE = Case(T=7, B=512, I=5, H=6)


def run(module, k, x, hx, options):
    module.recompute = k
    inputs = [x.clone().requires_grad_(), *(s.clone().requires_grad_() for s in hx)]
    y, (h_n, c_n) = module(inputs[0], tuple(inputs[1:]), **options)
    loss = (y.double().sin() * 2).sum() + h_n.double().cos().sum() + c_n.double().sum()
    return [y, h_n, c_n, *torch.autograd.grad(loss, [*inputs, *module.parameters()])]


def assert_same(case, options=None, steps=(1, 2, 3, 4, 100)):
    torch.manual_seed(0)
    _, module = case.modules()
    x = torch.randn(case.T, case.B, case.I, dtype=case.dtype)
    hx = case.state()
    wanted = run(module, 0, x, hx, options or {})
    for k in steps:
        for a, b in zip(run(module, k, x, hx, options or {}), wanted, strict=True):
            assert torch.equal(a, b), k


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("P", [0, 3], ids=["plain", "projected"])
def test_same_bits(dtype, P):
    assert_same(CASE.with_(dtype=dtype, P=P, bidirectional=True, layers=2), steps=(1, 3, 4))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("H", [6, 50])
def test_same_bits_without_bias(bias, H):
    assert_same(CASE.with_(bias=bias, H=H, B=400))


def test_same_bits_with_lengths_and_resets():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 8, (512,), generator=generator)
    reset = torch.rand(7, 512, generator=generator) < 0.2
    for options in (dict(lengths=lengths), dict(reset=reset), dict(lengths=lengths, reset=reset)):
        assert_same(CASE.with_(bidirectional=True), options, steps=(1, 2, 3))


@pytest.mark.parametrize("request_", ["algorithm=dot", "rows=2", "units=2", "fold=0 chunk=2"])
def test_same_bits_under_other_plans(extension, request_):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    extension.request_cpu_plan(request_)
    try:
        assert_same(CASE.with_(B=5, H=150, T=9), steps=(1, 2, 3))
    finally:
        extension.request_cpu_plan("")
        torch.set_num_threads(threads)


def test_same_bits_of_packed_rows():
    torch.manual_seed(0)
    _, module = CASE.with_(bidirectional=True).modules()
    lengths = torch.randint(1, 8, (512,))
    found = []
    for k in (0, 1, 3):
        module.recompute = k
        x = torch.randn(7, 512, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        y, (h_n, c_n) = module(packed)
        loss = y.data.sin().sum() + h_n.sum() + c_n.sum()
        found.append([y.data, *torch.autograd.grad(loss, [x, *module.parameters()])])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_gates_are_not_kept():
    module = fused_lstm.LSTM(4, 8, recompute=2)
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(torch.randn(6, 3, 4))
    assert not any(t.shape[-1] == 32 and t.dim() == 3 for t in kept)
    module.recompute = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(torch.randn(6, 3, 4))
    assert any(t.shape[-1] == 32 and t.dim() == 3 for t in kept)


def test_second_derivatives():
    module = fused_lstm.LSTM(2, 3, dtype=torch.float64, recompute=2)
    x = torch.randn(5, 2, 2).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0], x)


def test_checkpoints_from_before_have_none():
    module = fused_lstm.LSTM(2, 3)
    del module.__dict__["recompute"]  # as of a module that was pickled before there was one
    assert module(torch.randn(4, 2, 2))[0].shape == (4, 2, 3)


def test_negative_is_refused():
    module = fused_lstm.LSTM(2, 3, recompute=-1)
    with pytest.raises(ValueError, match="recompute of at least 0"):
        module(torch.randn(4, 2, 2))


@pytest.mark.parametrize("recompute", [1.5, "64", [64]])
def test_what_is_no_int_is_refused(recompute):
    module = fused_lstm.LSTM(2, 3, recompute=recompute)
    with pytest.raises(TypeError, match="recompute as an int, got"):
        module(torch.randn(4, 2, 2))


MEASURE = """
import json, sys, torch, fused_lstm
k, T, B, H = json.loads(sys.argv[1])
torch.set_num_threads(2)
module = fused_lstm.LSTM(H, H, recompute=k)
def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
def step(T):
    module(torch.randn(T, B, H))[0].sum().backward()
step(2)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is from here on
before = status("VmRSS")
step(T)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this kernel cannot reset a peak"
)
def test_memory():
    def peak(k):
        command = [sys.executable, "-c", MEASURE, json.dumps([k, 4096, 16, 512])]
        return int(subprocess.run(command, capture_output=True, check=True, timeout=300).stdout)

    default, recomputed = peak(0), peak(64)
    assert recomputed <= 0.40 * default, f"{recomputed} KiB of {default}"
