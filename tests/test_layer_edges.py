"""Empty batches, infinities, dropout, and autocast: where drop-in means the same odd behaviour."""

import math

import pytest
import torch
from cases import DTYPE_IDS, DTYPES, Case
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fused_lstm


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", [Case(B=0), Case(B=0, layers=2, bidirectional=True, P=2)])
def test_empty_batch(backend, device, case, dtype):
    theirs, ours = case.with_(dtype=dtype, device=device).modules()
    shapes = []
    for module in (theirs, ours):
        x = torch.randn(5, 0, 4, dtype=dtype, device=device, requires_grad=True)
        y, (h_n, c_n) = module(x)
        shapes.append([t.shape for t in (y, h_n, c_n)])
        assert y.dtype == dtype
    assert shapes[1] == shapes[0]
    (y.sum() + h_n.sum() + c_n.sum()).backward()
    assert x.grad.shape == x.shape
    assert all(p.grad is None or (p.grad == 0).all() for p in ours.parameters())
    with torch.no_grad():
        assert ours(x)[0].shape == y.shape


@pytest.mark.parametrize("where", ["x", "h0", "c0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_nan_and_infinity_travel(extension, device, dtype, value, where):
    """The same elements are NaN or infinite, and the rest is as it was."""
    theirs, ours = Case(H=17, bidirectional=True, dtype=dtype, device=device).modules()
    x = torch.randn(5, 3, 4, dtype=dtype, device=device)
    h0, c0 = (torch.randn(2, 3, 17, dtype=dtype, device=device) for _ in range(2))
    if where in ("x", "h0", "c0"):
        {"x": x, "h0": h0, "c0": c0}[where][1, 1, 2] = value
    else:
        for module in (theirs, ours):
            getattr(module, where).data.view(-1)[9] = value
    with torch.no_grad():
        expected, found = theirs(x, (h0, c0)), ours(x, (h0, c0))
    low = dtype in (torch.bfloat16, torch.float16)
    tolerances = dict(rtol=2e-2, atol=2e-2) if low else {}
    torch.testing.assert_close(found, expected, equal_nan=True, **tolerances)


@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_nan_stays_in_its_own_sequence(extension, device, kind):
    _, ours = Case(B=37, I=5, H=33, kind=kind, device=device).modules()
    sequences = [torch.randn(1 + b % 5, 5, device=device) for b in range(37)]
    if kind == "dense":
        sequences = [torch.randn(5, 5, device=device) for b in range(37)]
    sequences[7][0, 0] = float("nan")
    with torch.no_grad():
        _, (h_n, c_n) = ours(
            torch.stack(sequences, 1)
            if kind == "dense"
            else pack_sequence(sequences, enforce_sorted=False)
        )
    hit = torch.zeros(37, dtype=torch.bool, device=device)
    hit[7] = True
    assert (h_n[0].isnan().all(1) == hit).all()
    assert (c_n[0].isnan().any(1) == hit).all()


def test_nan_in_a_gradient_stays_in_its_own_sequence(extension, device):
    _, ours = Case(B=19, H=33, device=device).modules()
    x = torch.randn(5, 19, 4, device=device, requires_grad=True)
    y, _ = ours(x)
    grad = torch.ones_like(y)
    grad[4, 11, 3] = float("nan")
    (dx,) = torch.autograd.grad(y, x, grad)
    assert dx[:, 11].isnan().all()
    assert not dx[:, torch.arange(19) != 11].isnan().any()


def test_dropout_is_seeded_and_only_in_training(backend):
    _, ours = Case(layers=3, dropout=0.5, B=40, H=50).modules()
    x = torch.randn(5, 40, 4)

    def draw(seed):
        torch.manual_seed(seed)
        return ours(x)[0]

    torch.testing.assert_close(draw(1), draw(1), rtol=0, atol=0)
    assert not torch.equal(draw(1), draw(2))
    ours.eval()
    torch.testing.assert_close(draw(1), draw(2), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["dense", "packed", "batch_first"])
def test_dropout_draws_what_nn_lstm_draws(backend, kind):
    """On the CPU the same seed drops the same elements as in nn.LSTM."""
    case = Case(layers=3, dropout=0.4, bidirectional=True, B=6, batch_first=kind == "batch_first")
    case = case.with_(kind="packed" if kind == "packed" else "dense")
    theirs, ours = case.modules()
    x = case.pack(case.sequences())
    found = []
    for module in (theirs, ours):
        torch.manual_seed(11)
        found.append(module(x))
    torch.testing.assert_close(found[1], found[0])


def test_dropout_statistics(backend, device):
    """The share of dropped elements is p, their scale 1/(1-p), and the last layer has none.

    The second layer's input gates show what it was fed: with all other weights zero and a small
    w_ih, its output is nearly linear in the input.
    """
    p, n = 0.3, 200
    ours = fused_lstm.LSTM(1, 1, 2, dropout=p, bias=False, device=device)
    with torch.no_grad():
        for weight in ours.parameters():
            weight.zero_()
        ours.weight_ih_l0[2:3] = 1.0
        ours.weight_ih_l1[2:3] = 1e-3
        x = torch.ones(1, n * n, 1, device=device)
        y = ours(x)[0].flatten()
        kept = y.abs() > 0
        full = ours.eval()(x)[0].flatten()
    share = 1 - kept.double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p)) ** 0.5 / n  # five standard deviations
    torch.testing.assert_close(y[kept], full[kept] / (1 - p), rtol=1e-4, atol=0)


def test_dropout_of_everything(backend):
    theirs, ours = Case(layers=2, dropout=1.0).modules()
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["dense", "packed"])
@pytest.mark.parametrize("P", [0, 2])
@pytest.mark.parametrize("hx", [None, torch.float32, torch.bfloat16])
def test_autocast(backend, weights, kind, P, hx):
    """Under autocast every output has the dtype it has in nn.LSTM, and gradients the weights'."""
    if weights == torch.float64 and hx is not None:
        hx = torch.float64
    case = Case(P=P, layers=2, kind=kind)
    theirs, ours = case.modules()
    theirs.to(weights), ours.to(weights)
    x = case.pack(case.sequences()).to(weights)
    h0, c0 = case.state()
    state = None if hx is None else (h0.to(hx), c0.to(hx))
    found = []
    for module in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16):
            y, (h_n, c_n) = module(x, state)
        y = y.data if kind == "packed" else y
        (y.float().sum() + h_n.float().sum() + c_n.float().sum()).backward()
        found.append([y, h_n, c_n, *(p.grad for p in module.parameters())])
    for ours_t, theirs_t in zip(found[1], found[0], strict=True):
        assert ours_t.dtype == theirs_t.dtype
        torch.testing.assert_close(ours_t, theirs_t, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("hx", [None, torch.float32, torch.float16])
@pytest.mark.parametrize(
    "x", [torch.zeros(5, 0, 4), torch.zeros(5, 3, 4).half()], ids=["nobody", "float16"]
)
def test_autocast_of_what_onednn_does_not_take(backend, x, hx):
    """Nobody in the batch, and float16: there PyTorch's own LSTM widens the state."""
    found = []
    for module in (nn.LSTM(4, 6), fused_lstm.LSTM(4, 6)):
        state = None if hx is None else (torch.zeros(1, x.shape[1], 6, dtype=hx),) * 2
        with torch.autocast("cpu", torch.bfloat16):
            y, (h_n, c_n) = module(x, state)
        found.append([t.dtype for t in (y, h_n, c_n)])
    assert found[1] == found[0]


def test_autocast_to_float16_and_switched_off(backend):
    ours = fused_lstm.LSTM(4, 6)
    x = torch.randn(5, 3, 4)
    with torch.autocast("cpu", torch.float16):
        assert ours(x)[0].dtype == torch.float16
        with torch.autocast("cpu", enabled=False):
            torch.testing.assert_close(ours(x), nn.LSTM.forward(as_nn(ours), x))
    assert ours(x)[0].dtype == torch.float32


@pytest.mark.parametrize("on", ["cpu", "cuda"])
def test_autocast_of_another_device_changes_nothing(on, backend):
    """Switched on for devices that the tensors are not on."""
    module, x = fused_lstm.LSTM(4, 6), torch.randn(5, 3, 4)
    if on == "cpu":
        module, x = module.to("meta"), x.to("meta")
    torch.set_autocast_enabled(on, True)
    try:
        assert torch._C._is_any_autocast_enabled()
        y, (h_n, c_n) = module(x)
    finally:
        torch.set_autocast_enabled(on, False)
    assert y.dtype == h_n.dtype == c_n.dtype == torch.float32
    assert on == "cpu" or torch.equal(y, module(x)[0])


def test_autocast_is_a_cast_of_the_operands(backend):
    """It does not reach inside, where bfloat16 operands are summed in float32."""
    ours, x = fused_lstm.LSTM(40, 50), torch.randn(5, 3, 40)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(x)
    expected = ours.to(torch.bfloat16)(x.to(torch.bfloat16))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def casts(function, size: int) -> int:
    """How often a tensor of this many elements was cast."""
    with torch.profiler.profile(record_shapes=True) as profile:
        function()
    events = [e for e in profile.events() if e.name == "aten::_to_copy"]
    return sum(math.prod(e.input_shapes[0]) == size for e in events)


@pytest.mark.parametrize("make", [fused_lstm.LSTM, fused_lstm.LSTMCell])
def test_autocast_casts_a_weight_once(make, extension):
    """Once for all calls in the region, in each, with the values and gradients of this moment."""
    ours, x = make(5, 7), torch.randn(3, 5)
    size = ours.get_parameter(
        "weight_ih" if make is fused_lstm.LSTMCell else "weight_ih_l0"
    ).numel()

    def four_calls():
        with torch.autocast("cpu", torch.bfloat16):
            with torch.inference_mode():
                ours(x)
            with torch.no_grad():
                ours(x)
            first, second = ours(x)[0], ours(x)[0]
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        return first

    assert casts(four_calls, size) == 1
    y = four_calls()
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in ours.parameters())
    with torch.no_grad():
        for p in ours.parameters():
            p.zero_()
    assert not four_calls().any()


def test_second_derivatives_under_autocast(backend):
    ours = fused_lstm.LSTM(4, 6)
    x = torch.randn(5, 3, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)[0].float()
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        dx.pow(2).sum().backward()
    assert ours.weight_hh_l0.grad.isfinite().all()


def as_nn(ours):
    theirs = nn.LSTM(4, 6)
    theirs.load_state_dict(ours.state_dict())
    return theirs
