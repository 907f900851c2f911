"""Every instruction set that the build holds and this machine has computes the same."""

import pytest
import torch
from cases import DTYPE_IDS, DTYPES, Case, check

import fused_lstm

LEVELS = ["baseline", "avx2", "avx512", "avx512_bf16"]


@pytest.fixture(params=LEVELS)
def isa(request, extension):
    """Runs the test with the instruction set capped at this level."""
    before = extension.cpu_isa()
    if request.param not in extension.build_info()["compiled_isas"]:
        pytest.skip(f"{request.param} is not compiled in")
    if LEVELS.index(request.param) > LEVELS.index(before):
        pytest.skip(f"this machine has {before} at most")
    extension.set_cpu_isa(request.param)
    yield request.param
    extension.set_cpu_isa(before)


@pytest.mark.core
def test_the_cap_holds(isa, extension):
    assert extension.cpu_isa() == isa


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("H", [1, 17, 64, 100])
@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_values_and_gradients(isa, H, kind, dtype):
    check(Case(T=4, B=9, I=11, H=H, kind=kind, bidirectional=True, dtype=dtype))
    check(Case(T=1, B=1, I=11, H=H, dtype=dtype))


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_sigmoid_and_tanh_over_their_whole_range(isa, dtype):
    """One step with weights that pass each gate's pre-activation through, at 40,000 points.

    With the other gates fixed by their bias, h shows sigmoid(o), and c shows sigmoid(i) tanh(g).
    """
    n = 4000
    points = torch.cat([torch.linspace(-100, 100, n), torch.logspace(-30, 1, n), torch.zeros(1)])
    points = torch.cat([points, -points]).to(dtype)
    eps = torch.finfo(dtype).eps
    module = fused_lstm.LSTM(1, 1, dtype=dtype)

    def step(gate, biases, c0):
        with torch.no_grad():
            for p in module.parameters():
                p.zero_()
            module.weight_ih_l0[gate] = 1
            module.bias_ih_l0.copy_(torch.tensor(biases))
            h0 = torch.zeros(1, len(points), 1, dtype=dtype)
            _, (h, c) = module(points.view(1, -1, 1), (h0, torch.full_like(h0, c0)))
        return h.flatten().double(), c.flatten().double()

    exact = points.double()
    # i open, f closed: c = tanh(g)
    _, c = step(2, [100.0, -200.0, 0.0, 0.0], 0.0)
    assert ((c - exact.tanh()).abs() <= 4 * eps * exact.tanh().abs()).all()
    # g saturated, f closed: c = sigmoid(i)
    _, c = step(0, [0.0, -200.0, 100.0, 0.0], 0.0)
    normal = exact.sigmoid() > torch.finfo(dtype).tiny * 16
    error = (c - exact.sigmoid()).abs()
    assert (error[normal] <= 4 * eps * exact.sigmoid()[normal]).all()
    assert (error[~normal] <= torch.finfo(dtype).tiny * 16).all()
    # i closed, c0 = 1: c = sigmoid(f)
    _, c = step(1, [-200.0, 0.0, 0.0, 0.0], 1.0)
    assert ((c - exact.sigmoid()).abs()[normal] <= 4 * eps * exact.sigmoid()[normal]).all()
    # i closed, f open, c0 = 0.5: h = sigmoid(o) tanh(0.5)
    h, _ = step(3, [-200.0, 100.0, 0.0, 0.0], 0.5)
    expected = exact.sigmoid() * torch.tensor(0.5, dtype=torch.float64).tanh()
    assert ((h - expected).abs()[normal] <= 10 * eps * expected[normal]).all()
