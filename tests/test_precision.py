"""float32 under ``torch.backends.mkldnn.rnn.fp32_precision``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Case, column, exact_column, leaves, run
from test_cpu_forced_plans import KINDS, everything
from torch import Tensor

import fused_lstm

SETTING = torch.backends.mkldnn.rnn
Rounding = Callable[[Tensor], Tensor]


@pytest.fixture(params=["avx512_bf16", "avx512_amx"])
def isa(request, extension):
    """Instructions that can multiply bfloat16."""
    before = extension.cpu_isa()
    extension.set_cpu_isa(request.param)
    if extension.cpu_isa() != request.param:
        pytest.skip(f"this machine has {before} at most")
    extension.request_cpu_plan("algorithm=panels")
    yield request.param
    extension.request_cpu_plan("")
    extension.set_cpu_isa(before)


@pytest.fixture
def amx(isa):
    if isa != "avx512_amx":
        pytest.skip("two parts are multiplied by the matrix unit only")


@pytest.fixture
def precision():
    """Sets it, until the test ends."""
    before = SETTING.fp32_precision

    def choose(value: str) -> None:
        SETTING.fp32_precision = value

    yield choose
    SETTING.fp32_precision = before


def to_bfloat16(t: Tensor) -> Tensor:
    return t.float().bfloat16().double()


def to_tf32(t: Tensor) -> Tensor:
    """11 significant bits, ties to even."""
    bits = t.float().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32).double()


def one_step(case: Case, x: Tensor, hx, weights: list[Tensor], grad: Tensor, rounded: Rounding):
    """Output and gradients of one step in float64, operands of every product rounded.

    The gradients are those of fused_lstm's backward pass: dz = rounded, db its sum before.
    """
    x, h0, c0, grad = x.double(), hx[0][0].double(), hx[1][0].double(), grad.double()
    w_ih, w_hh, b_ih, b_hh = (w.detach().double() for w in weights)
    z = rounded(x) @ rounded(w_ih).T + rounded(h0) @ rounded(w_hh).T + b_ih + b_hh
    i, f, g, o = z.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c0 + i * g
    dc = grad * o * (1 - c.tanh() ** 2)
    dz = torch.cat(
        [dc * g * i * (1 - i), dc * c0 * f * (1 - f), dc * i * (1 - g * g),
         grad * c.tanh() * o * (1 - o)], 1
    )  # fmt: skip
    products = [
        rounded(dz) @ rounded(w_ih),
        rounded(dz) @ rounded(w_hh),
        rounded(dz).T @ rounded(x),
        rounded(dz).T @ rounded(h0),
    ]
    return [o * c.tanh(), *products, dz.sum(0)]


def found_in_one_step(case: Case, precision):
    """What fused_lstm computes, and what one_step() needs for the same."""
    _, ours = case.modules()
    hx = [t.requires_grad_() for t in case.state()]
    x = torch.randn(case.B, case.I, requires_grad=True)
    y = ours(x[None], tuple(hx))[0][0]
    grad = torch.randn_like(y)
    weights = list(ours.parameters())
    inputs = [x, hx[0], *weights[:3]]
    dx, dh0, dw_ih, dw_hh, db = torch.autograd.grad(y, inputs, grad)
    return [y, dx, dh0[0], dw_ih, dw_hh, db], (case, x.detach(), hx, weights, grad)


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest error, relative to the largest element of its tensor."""
    pairs = zip(found, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


SHAPES = [(5, 1, 1), (7, 3, 17), (9, 33, 65), (40, 300, 130), (70, 70, 40)]


@pytest.mark.core
@pytest.mark.parametrize("shape", [(1, 40, 20), (3, 21, 70), *SHAPES], ids=str)
def test_bf16_rounds_the_operands_and_nothing_else(shape, isa, precision):
    """To float32's rounding: everything but the operands is float32.

    dz differs by that from the reference's and may round to another bfloat16 than it.
    """
    precision("bf16")
    B, I, H = shape  # noqa: E741
    found, given = found_in_one_step(Case(T=1, B=B, I=I, H=H), precision)
    expected = one_step(*given, to_bfloat16)
    assert worst(found[:1], expected[:1]) < 2e-6
    assert worst(found[5:], expected[5:]) < 2e-5
    assert worst(found[1:5], expected[1:5]) < 2e-3
    exact = one_step(*given, torch.Tensor.double)
    assert worst(found[:1], exact[:1]) > 1e-5, "nothing was rounded"


@pytest.mark.core
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tf32_is_far_within_its_bound(shape, isa, amx, precision):
    """The sum of two bfloat16 has 16 bits, TF32 11: a fourth of its error leaves room for sums."""
    precision("tf32")
    B, I, H = shape  # noqa: E741
    found, given = found_in_one_step(Case(T=1, B=B, I=I, H=H), precision)
    exact = one_step(*given, torch.Tensor.double)
    of_tf32 = worst(one_step(*given, to_tf32), exact)
    assert worst(found, exact) < 0.25 * of_tf32 + 1e-6
    precision("ieee")
    again = found_in_one_step(Case(T=1, B=B, I=I, H=H), precision)
    assert worst(again[0], one_step(*again[1], torch.Tensor.double)) < 2e-6


@pytest.mark.core
@pytest.mark.parametrize("setting", ["bf16", "tf32"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind, setting, isa, precision):
    """No less accurate than nn.LSTM in bfloat16; "tf32" as accurate as in float32 to 2^-11."""
    case = KINDS[kind].with_(B=37)
    drawn = torch.get_rng_state().numpy().tobytes()
    theirs, ours = case.modules()
    sequences, hx = case.sequences(), case.state()
    expected = exact_column(case, True, drawn, sequences, hx, theirs.all_weights)

    precision(setting)
    theirs.bfloat16()
    errors = []
    for module, dtype in ((ours, torch.float32), (theirs, torch.bfloat16)):
        xs, states = (leaves([t.to(dtype) for t in part]) for part in (sequences, hx))
        weights = [p for group in module.all_weights for p in group]
        found = column(case, True, run(module, case, xs, states), xs, *states, weights)
        errors.append(worst(found, expected))
    assert errors[0] < (1.5 * errors[1] if setting == "bf16" else 2**-11)


@pytest.mark.parametrize("setting", ["none", "ieee", "tf32"])
def test_without_a_matrix_unit_only_bf16_changes_anything(setting, extension, precision):
    if extension.cpu_isa() == "avx512_amx":
        extension.set_cpu_isa("avx512_bf16")
    case = Case(T=5, B=9, I=30, H=40)
    expected = everything(case)
    precision(setting)
    for ours, first in zip(everything(case), expected, strict=True):
        assert torch.equal(ours, first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_left_alone(dtype, isa, precision):
    """Also those that are converted to float32 on the way: float16 has more bits than bfloat16."""
    case = Case(T=5, B=9, I=30, H=40, dtype=dtype)
    expected = everything(case)
    precision("bf16")
    for ours, first in zip(everything(case), expected, strict=True):
        assert torch.equal(ours, first)


@pytest.mark.core
@pytest.mark.parametrize("setting", ["bf16", "tf32"])
def test_the_same_bits_with_any_number_of_threads(setting, isa, precision):
    precision(setting)
    for kind in ("dense", "packed, projected"):
        found = []
        for threads in (1, 2, 3, 4, 7):
            torch.set_num_threads(threads)
            found.append(everything(KINDS[kind].with_(B=21)))
        for ours in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(ours, found[0], strict=True))


INF = float("inf")


@pytest.mark.core
@pytest.mark.parametrize("setting", ["bf16", "tf32"])
@pytest.mark.parametrize("value", [INF, -INF, float("nan"), 3.4e38], ids=str)
@pytest.mark.parametrize("where", ["x", "h0", "w_ih", "w_hh", "x and w_ih"])
def test_what_is_not_finite(where, value, setting, isa, precision):
    """It is what it is in float32, and nothing becomes NaN that was infinite.

    3.4e38 is infinite in bfloat16, and its product with a gradient of zero NaN. The others' low
    parts are zero, of their own sign and of the other one, and large: each must leave an infinite
    sum what it is.
    """
    case = Case(T=1, B=8, I=41, H=50)
    _, ours = case.modules()
    x, h0, c0 = torch.randn(1, 8, 41), torch.randn(1, 8, 50), torch.randn(1, 8, 50)
    with torch.no_grad():
        for t in (x, h0):
            t[:, :2] = t[:, :2].bfloat16().float()
            t[:, 2:4] *= 1e6
        places = {"x": x[0], "h0": h0[0], "w_ih": ours.weight_ih_l0, "w_hh": ours.weight_hh_l0}
        for name in where.split(" and "):
            places[name][5, 40] = value
        if where == "x and w_ih":  # and of both signs
            places["x"][6, 40] = -value
    found = []
    for each in ("ieee", setting):
        precision(each)
        inputs = leaves([x, h0])
        y, (_, c_n) = ours(inputs[0], (inputs[1], c0))
        grads = torch.autograd.grad([y.sum(), c_n.sum()], [*inputs, *ours.parameters()])
        found.append([y, c_n, *grads])
    compared = 2 if value == 3.4e38 else None
    for exact, here in zip(found[0][:compared], found[1][:compared], strict=True):
        assert torch.equal(here.isnan(), exact.isnan())
    for exact, here in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(here, exact, rtol=0, atol=0.05, equal_nan=True)


@pytest.mark.parametrize("backward", ["bf16", "ieee"])
def test_each_pass_takes_the_setting_of_its_time(backward, isa, precision):
    """As PyTorch's own ops do: a graph holds tensors, and no settings."""
    case = Case(T=3, B=9, I=33, H=40)
    _, ours = case.modules()
    x = torch.randn(3, 9, 33)

    def passes(first: str, second: str) -> tuple[Tensor, list[Tensor]]:
        precision(first)
        y = ours(x)[0]
        precision(second)
        return y.detach(), list(torch.autograd.grad(y.sum(), list(ours.parameters())))

    forward = "ieee" if backward == "bf16" else "bf16"
    y, mixed = passes(forward, backward)
    expected, whole = passes(forward, forward)
    assert torch.equal(y, expected)
    assert not all(torch.equal(a, b) for a, b in zip(mixed, whole, strict=True))


def test_explain_says_which_runs(isa, precision):
    ours, x = fused_lstm.LSTM(8, 16), torch.ones(4, 9, 8)
    said = {}
    for setting in ("ieee", "bf16", "tf32"):
        precision(setting)
        text = fused_lstm.explain(ours, x)
        said[setting] = "products of" in text
        if setting == "bf16":
            assert "computed_in=float32 with products of bfloat16" in text
    assert said == {"ieee": False, "bf16": True, "tf32": isa == "avx512_amx"}
