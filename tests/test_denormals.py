"""Numbers too small to be normal count as zero inside the CPU kernels, and nowhere else."""

from __future__ import annotations

import pytest
import torch

import fused_lstm

TINY = {torch.float32: 2.0**-140, torch.float64: 2.0**-1060}  # denormal


def is_denormal(t: torch.Tensor) -> torch.Tensor:
    return (t != 0) & (t.abs() < torch.finfo(t.dtype).tiny)


def flushed(dtype: torch.dtype) -> bool:
    """Whether any thread of torch's pool takes denormal numbers for zero."""
    return bool((torch.full((1 << 20,), TINY[dtype], dtype=dtype) * 1 == 0).any())


@pytest.mark.core
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [1, 24])
def test_gradients_that_fade_become_zero(dtype, threads, batch, extension):
    """Only the last step is in the loss, and each step before it halves its gradient or more."""
    torch.set_num_threads(threads)
    steps = 300 if dtype == torch.float32 else 2400
    module = fused_lstm.LSTM(3, 80, dtype=dtype)
    with torch.no_grad():
        module.bias_ih_l0[80:160] = -0.8  # forget gates of a third
    x = torch.randn(steps, batch, 3, dtype=dtype, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x)[0][-1].sum(), x)
    assert (dx[-1] != 0).all()
    assert (dx[0] == 0).all()
    assert not is_denormal(dx).any()


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_thread_is_left_as_it_was(dtype, extension):
    torch.set_num_threads(2)
    module = fused_lstm.LSTM(3, 80, dtype=dtype)
    x = torch.randn(20, 24, 3, dtype=dtype, requires_grad=True)
    assert not flushed(dtype)
    module(x)[0].sum().backward()
    assert extension.last_cpu_plan()["threads"] == 2
    assert not flushed(dtype)
    torch.set_flush_denormal(True)  # of this thread
    try:
        module(x)[0].sum().backward()
        torch.set_num_threads(1)
        assert flushed(dtype)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.core
def test_infinity_and_nan_travel_back_through_zeros(extension):
    """Gradients that have become zero still carry what is not a number."""
    module = fused_lstm.LSTM(3, 8)
    with torch.no_grad():
        module.bias_ih_l0[8:16] = -5
    x = torch.randn(60, 2, 3)
    for value in (float("nan"), float("inf")):
        bad = x.clone()
        bad[10, 1, 0] = value
        bad.requires_grad_()
        (dx,) = torch.autograd.grad(module(bad)[0][-1].sum(), bad)
        (theirs,) = torch.autograd.grad(plain(module)(bad)[0][-1].sum(), bad)
        assert torch.equal(dx.isnan(), theirs.isnan())


def plain(module: fused_lstm.LSTM) -> torch.nn.LSTM:
    other = torch.nn.LSTM(module.input_size, module.hidden_size)
    other.load_state_dict(module.state_dict())
    return other
