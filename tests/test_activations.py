"""sigmoid and tanh of the CPU kernels, taken out of the op by weights that switch the rest off."""

from __future__ import annotations

import pytest
import torch

from fused_lstm import _ops

pytestmark = pytest.mark.skipif(_ops.extension is None, reason="the extension is not built")

OPEN, SHUT = 1e4, -1e4  # pre-activations whose sigmoid is exactly 1 and 0


def step(x: torch.Tensor, gates: list[torch.Tensor | float], c0: torch.Tensor):
    """h and c of one step of as many units as x has elements, of pre-activations `gates`.

    The pre-activations are the biases, so that infinities meet no zero in a product.
    """
    units = x.numel()
    bias = torch.cat([torch.as_tensor(gate, dtype=x.dtype).expand(units) for gate in gates])
    weights = [x.new_zeros(4 * units, 1), x.new_zeros(4 * units, units)]
    weights += [bias, torch.zeros_like(bias)]
    _, h_n, c_n, _, _ = _ops.lstm_layer(
        x.new_zeros(1, 1, 1), None, None, c0.view(1, 1, units), weights, [False], False
    )
    return h_n.flatten(), c_n.flatten()


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return step(x, [SHUT, x, 0.0, 0.0], torch.ones_like(x))[1]


def tanh(x: torch.Tensor) -> torch.Tensor:
    return step(x, [SHUT, OPEN, 0.0, OPEN], x)[0]


def points(dtype: torch.dtype) -> torch.Tensor:
    """Both signs, every magnitude from tiny to far past saturation."""
    magnitudes = torch.logspace(-12, 1.93, 1500, dtype=torch.float64).to(dtype)
    return torch.cat([magnitudes, -magnitudes])


def error_in_ulp(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Distance in units of the last place of `want`, whose dtype must be wider where it can be."""
    info = torch.finfo(got.dtype)
    exponent = torch.floor(torch.log2(want.abs().clamp_min(info.tiny).double()))
    return (got.double() - want.double()).abs() / (info.eps * torch.exp2(exponent))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_within_four_ulp(isa, dtype, function):
    x = points(dtype)
    got = globals()[function](x)
    want = getattr(torch, function)(x.double())
    # float64's own reference is good to an ulp.
    bound = 4 if dtype == torch.float32 else 5
    assert error_in_ulp(got, want).max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_special_values(isa, dtype):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([inf, -inf, nan, 0.0, -0.0], dtype=dtype)
    torch.testing.assert_close(sigmoid(x), torch.sigmoid(x), equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(tanh(x), torch.tanh(x), equal_nan=True, rtol=0, atol=0)
