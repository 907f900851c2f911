"""More than 2^31 elements, or offsets beyond them, do not overflow index arithmetic."""

import pytest
import torch

import fused_lstm

LIMIT = 2**31


def available_gib() -> float:
    with open("/proc/meminfo") as lines:
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return kib / 2**20


def need(gib: float) -> None:
    if available_gib() < gib:
        pytest.skip(f"needs {gib} GiB of free memory, {available_gib():.1f} are there")


@pytest.mark.parametrize("far", ["steps", "batch"])
def test_strides_beyond_the_limit(extension, far):
    """The pages in between are never touched: this takes address space, not memory."""
    need(6)
    storage = torch.empty(LIMIT + 4096, dtype=torch.bfloat16)
    strides = {"steps": (LIMIT, 8, 1), "batch": (8, LIMIT, 1)}[far]
    x = storage.as_strided((2, 2, 8), strides)
    x.copy_(torch.randn(2, 2, 8))
    module = fused_lstm.LSTM(8, 16, dtype=torch.bfloat16)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            found, expected = module(x), module(x.clone())
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found[0].float().sum().backward()
    far_grad = module.weight_ih_l0.grad.clone()
    module.zero_grad()
    expected[0].float().sum().backward()
    torch.testing.assert_close(far_grad, module.weight_ih_l0.grad, rtol=0, atol=0)


@pytest.mark.slow
def test_more_output_elements_than_the_limit(extension):
    need(8)
    T, B, H = 257, 131072, 64
    assert T * B * H > LIMIT
    module = fused_lstm.LSTM(1, H, dtype=torch.bfloat16)
    x = torch.randn(T, 1, 1, dtype=torch.bfloat16).expand(T, B, 1).clone()
    x[:, -3:] = 0.5
    with torch.no_grad():
        y, (h_n, _) = module(x)
        few, (h_few, _) = module(x[:, -8:].clone())
    assert y.numel() > LIMIT
    # Another batch is summed in another order: a last place may differ, of small values by what
    # that of the larger ones gives after the next step.
    eps = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(y[:, -8:], few, rtol=eps, atol=eps / 4)
    torch.testing.assert_close(h_n[:, -8:], h_few, rtol=eps, atol=eps / 4)
    torch.testing.assert_close(y[-1], h_n[0], rtol=0, atol=0)


@pytest.mark.slow
def test_more_saved_elements_than_the_limit(extension):
    need(14)
    T, B, H = 65, 131072, 64
    assert T * B * 4 * H > LIMIT
    module = fused_lstm.LSTM(1, H, dtype=torch.bfloat16)
    x = torch.randn(T, 8, 1, dtype=torch.bfloat16).repeat(1, B // 8, 1).requires_grad_()
    few = x.detach()[:, -8:].clone().requires_grad_()
    for leaf in (x, few):
        y, _ = module(leaf)
        y.backward(torch.ones(1, dtype=y.dtype).expand_as(y))
    torch.testing.assert_close(x.grad[:, -8:], few.grad, rtol=8e-3, atol=2e-3)
    torch.testing.assert_close(x.grad[:, :8], few.grad, rtol=8e-3, atol=2e-3)


@pytest.mark.slow
def test_more_input_elements_than_the_limit(extension):
    need(14)
    T, B, I, H = 3, 16, 2**31 // 47, 1  # noqa: E741
    assert T * B * I > LIMIT
    module = fused_lstm.LSTM(I, H, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        module.weight_ih_l0.mul_(1e-4)  # or the gates saturate, and nothing has a gradient
    row = torch.randn(I, dtype=torch.bfloat16)
    x = row.expand(T, B, I).requires_grad_()
    y, _ = module(x)
    small, _ = module(row.expand(T, 1, I))
    torch.testing.assert_close(y, small.expand_as(y), rtol=2e-2, atol=1e-2)
    (dx,) = torch.autograd.grad(y.float().sum(), x)
    assert dx.shape == x.shape
    torch.testing.assert_close(dx[-1, -1, -5:], dx[-1, 0, -5:], rtol=2e-2, atol=0)
    assert dx[-1, -1, -5:].abs().max() > 0
