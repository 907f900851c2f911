"""What a call with lengths or resets keeps for its backward pass, and leaves beyond them."""

import pytest
import torch
from cases import leaves

import fused_lstm

T, B, INPUT, H = 9, 5, 3, 20
LENGTHS = torch.tensor([4, 9, 0, 1, 6])
RESET = torch.zeros(T, B, dtype=torch.bool)
RESET[[0, 2, 5, 3, 8], [1, 0, 1, 4, 1]] = True
LIVE = int(LENGTHS.sum())

pytestmark = pytest.mark.usefixtures("extension")


def saved_shapes(module, x, **options) -> set[tuple[int, ...]]:
    shapes = set()

    def pack(t):
        shapes.add(tuple(t.shape))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x, **options)
    return shapes


@pytest.mark.parametrize("options", [{}, {"reset": RESET}], ids=["lengths", "and resets"])
def test_training_keeps_live_rows_only(options):
    module, x = fused_lstm.LSTM(INPUT, H, bidirectional=True), torch.randn(T, B, INPUT)
    kept = saved_shapes(module, x, lengths=LENGTHS, **options)
    assert {(2, LIVE, 4 * H), (2, LIVE, H)} <= kept
    seen = saved_shapes(module, x, lengths=LENGTHS, return_cells=True, **options)
    assert {(2, T * B, 4 * H), (2, T * B, H)} <= seen


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep_every", [0, 2])
@pytest.mark.parametrize("lengths", [LENGTHS, None], ids=["lengths", "whole"])
@pytest.mark.parametrize("reset", [RESET, None], ids=["resets", "no reset"])
def test_where_the_saved_lie_changes_no_bit(lengths, reset, keep_every, dtype):
    module = fused_lstm.LSTM(INPUT, H, bidirectional=True, dtype=dtype)
    x, h0, c0, reset_h, reset_c = leaves(
        [torch.randn(shape, dtype=dtype) for shape in ((T, B, INPUT), *[(2, B, H)] * 4)]
    )
    if reset is None:
        reset_h = reset_c = None
    asked = [t for t in (x, h0, c0, reset_h, reset_c, *module.parameters()) if t is not None]
    found = []
    for compact in (False, True):
        y, h_n, c_n, gates, c = torch.ops.fused_lstm.lstm_sequence(
            x, None, h0, c0, module._flat_weights, [False, True], lengths, reset,
            reset_h, reset_c, True, keep_every, compact,
        )  # fmt: skip
        assert c.requires_grad == (not compact and keep_every == 0)
        rows = T * B if lengths is None or not compact else LIVE
        assert c.shape == (2, rows, H)
        assert gates.shape == ((0,) if keep_every else (2, rows, 4 * H))
        loss = y.float().sin().sum() + h_n.float().sum() + c_n.float().cos().sum()
        found.append([y, h_n, c_n, *torch.autograd.grad(loss, asked)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_c_of_live_rows_takes_no_gradient():
    module, x = fused_lstm.LSTM(INPUT, H), torch.randn(T, B, INPUT)
    call = (x, None, None, None, module._flat_weights, [False], LENGTHS, None, None, None)
    with torch.no_grad():
        y, _, _, gates, c = torch.ops.fused_lstm.lstm_sequence(*call, True, 0, True)
        with pytest.raises(RuntimeError, match="c of live rows only takes no gradient"):
            torch.ops.fused_lstm.lstm_sequence_backward(
                y, None, None, torch.ones(1, T * B, H), *call, y, gates, c, [True] * 9, 0, True
            )
        with pytest.raises(RuntimeError, match=rf"expected gates .*{T * B}"):
            torch.ops.fused_lstm.lstm_sequence_backward(
                y, None, None, None, *call, y, gates, c, [True] * 9, 0, False
            )


@pytest.mark.parametrize("threads", [1, 2])
def test_all_that_lies_beyond_the_lengths_is_zero(threads):
    """More of it than one thread clears, in memory that held something else before."""
    torch.set_num_threads(threads)
    steps, batch, size = 60, 6, 700
    lengths = torch.tensor([60, 3, 0, 20, 1, 44])
    dead = torch.arange(steps).unsqueeze(1) >= lengths
    module = fused_lstm.LSTM(size, size)
    x = torch.randn(steps, batch, size, requires_grad=True)
    for _ in range(3):
        held = [torch.full_like(x.detach(), float("nan")) for _ in range(4)]
        del held
        y, _, cells = module(x, lengths=lengths, return_cells=True)
        (grad,) = torch.autograd.grad(y.sum(), x)
        for t in (y, cells, grad):
            assert not t[dead].any()
            assert t[~dead].all()


PLANS = ["units=2", "rows=2", "directions=2", "directions=1 units=2", "directions=1 rows=2 chunk=3"]


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_clears_what_lies_beyond_the_lengths(extension, plan):
    steps, batch, size = 150, 64, 80
    lengths = torch.randint(0, steps + 1, (batch,))
    dead = torch.arange(steps).unsqueeze(1) >= lengths
    module = fused_lstm.LSTM(size, size, bidirectional="directions" in plan)
    x = torch.randn(steps, batch, size, requires_grad=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        extension.request_cpu_plan(plan)
        y, _ = module(x, lengths=lengths)
        for _ in range(3):
            held = [torch.full_like(t.detach(), float("nan")) for t in (x, y) for _ in range(4)]
            del held, y
            y, _ = module(x, lengths=lengths)
            (grad,) = torch.autograd.grad(y.sum(), x)
            for t in (y, grad):
                assert not t[dead].any()
                assert t[~dead].all()
    finally:
        extension.request_cpu_plan("")
        torch.set_num_threads(threads)
