"""sigmoid and tanh of the CPU kernels, taken out of the op by weights that switch the rest off."""

from __future__ import annotations

import pytest
import torch

from fused_lstm import _ops

pytestmark = pytest.mark.skipif(_ops.extension is None, reason="the extension is not built")

OPEN, SHUT = 1e4, -1e4  # pre-activations whose sigmoid is exactly 1 and 0


def layer(x: torch.Tensor, gates: list[torch.Tensor | float], c0: torch.Tensor, save: bool):
    """What the op returns of one step of as many units as x has elements.

    The pre-activations `gates` are the biases, so that infinities meet no zero in a product.
    """
    units = x.numel()
    bias = torch.cat([torch.as_tensor(gate, dtype=x.dtype).expand(units) for gate in gates])
    weights = [x.new_zeros(4 * units, 1), x.new_zeros(4 * units, units)]
    weights += [bias, torch.zeros_like(bias)]
    c0 = c0.view(1, 1, units)
    return _ops.lstm_layer(x.new_zeros(1, 1, 1), None, None, c0, weights, [False], save)


def step(x: torch.Tensor, gates: list[torch.Tensor | float], c0: torch.Tensor):
    """h and c."""
    _, h_n, c_n, _, _ = layer(x, gates, c0, save=False)
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


BF16 = torch.bfloat16


def saved_step(x: torch.Tensor, gates: list[torch.Tensor | float], c0: torch.Tensor):
    """h, c and the saved gates [4, units]."""
    _, h_n, c_n, saved, _ = layer(x, gates, c0, save=True)
    return h_n.flatten(), c_n.flatten(), saved.view(4, -1)


def bf16_points() -> torch.Tensor:
    """Where no result is too small to be normal."""
    x = points(BF16)
    return x[(x > -80) & (x < 80)]


@pytest.mark.core
@pytest.mark.parametrize("gate", ["i", "f", "o"])
def test_sigmoid_rounded_to_bfloat16(isa, gate):
    """Hardly further from the value than the nearest bfloat16: half a unit, and 2^-13 of it."""
    x, one = bf16_points(), torch.ones_like(bf16_points())
    found = {
        "i": lambda: step(x, [x, SHUT, OPEN, OPEN], one)[1],
        "f": lambda: step(x, [SHUT, x, 0.0, 0.0], one)[1],
        "o": lambda: step(x, [SHUT, OPEN, 0.0, x], 60 * one)[0],
    }[gate]()
    assert error_in_ulp(found, torch.sigmoid(x.double())).max() < 0.55


@pytest.mark.core
@pytest.mark.parametrize("place", ["g", "c"])
def test_tanh_rounded_to_bfloat16(isa, place):
    x = bf16_points()
    if place == "g":
        found = step(x, [OPEN, SHUT, x, OPEN], torch.zeros_like(x))[1]
    else:
        found = step(x, [SHUT, OPEN, 0.0, OPEN], x)[0]
    assert error_in_ulp(found, torch.tanh(x.double())).max() < 0.55


@pytest.mark.core
def test_saved_gates_in_bfloat16(isa):
    """They are what was computed with; that they are saved changes nothing."""
    x, c0 = bf16_points(), torch.randn_like(bf16_points())
    h_n, c_n, gates = saved_step(x, [x, -x, x, x], c0)
    for found, want in zip(
        gates,
        [x.double().sigmoid(), (-x).double().sigmoid(), x.double().tanh(), x.double().sigmoid()],
        strict=True,
    ):
        assert error_in_ulp(found, want).max() < 0.55
    h, c = step(x, [x, -x, x, x], c0)
    assert torch.equal(h_n, h)
    assert torch.equal(c_n, c)


@pytest.mark.core
def test_special_values_in_bfloat16(isa):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([inf, -inf, nan, 0.0, -0.0, 1e38, -1e38], dtype=BF16)
    one = torch.ones_like(x)
    for found in (sigmoid(x), step(x, [x, SHUT, OPEN, OPEN], one)[1]):
        torch.testing.assert_close(found, torch.sigmoid(x), equal_nan=True, rtol=0, atol=0)
    for found in (tanh(x), step(x, [OPEN, SHUT, x, OPEN], 0 * one)[1]):
        torch.testing.assert_close(found, torch.tanh(x), equal_nan=True, rtol=0, atol=0)
    _, _, gates = saved_step(x, [x, x, x, x], one)
    want = torch.stack([x.sigmoid(), x.sigmoid(), x.tanh(), x.sigmoid()])
    torch.testing.assert_close(gates, want, equal_nan=True, rtol=0, atol=0)


@pytest.mark.core
@pytest.mark.parametrize("batch", [1, 9])
def test_a_cell_in_bfloat16_remembers_for_thousands_of_steps(isa, batch):
    """An error of f that every step repeats would grow with them: 2^-14 to a tenth."""
    steps, units = 2000, 17
    f = torch.linspace(6.5, 9, units).to(BF16)
    bias = torch.cat([torch.full((units,), SHUT), f, torch.zeros(2 * units)]).to(BF16)
    weights = [bias.new_zeros(4 * units, 1), bias.new_zeros(4 * units, units)]
    weights += [bias, torch.zeros_like(bias)]
    x, c0 = bias.new_zeros(steps, batch, 1), bias.new_ones(1, batch, units)
    c_n = _ops.lstm_layer(x, None, None, c0, weights, [False], False)[2]
    want = torch.sigmoid(f.double()) ** steps
    torch.testing.assert_close(c_n[0].double(), want.expand(batch, -1), rtol=2**-8, atol=0)
