"""lstm_sequence where numbers are at their ends: of steps kept, and of gradients."""

import sys

import pytest
import torch

import fused_lstm

T, B, I, H = 50, 64, 5, 6  # noqa: E741


def gradients(module, x, k, options):
    module.recompute = k
    module.zero_grad()
    y, (h_n, c_n) = module(x, **options)
    (y.sin().sum() + h_n.cos().sum() + c_n.sum()).backward()
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("k", [T, T + 1, 2**62, sys.maxsize])
@pytest.mark.parametrize("ragged", [False, True])
def test_more_steps_kept_apart_than_there_are(extension, k, ragged):
    """All are computed again: as many as there are, however large the number."""
    torch.manual_seed(0)
    module, x = fused_lstm.LSTM(I, H), torch.randn(T, B, I)
    options = dict(lengths=torch.randint(0, T // 2, (B,))) if ragged else {}
    wanted = gradients(module, x, 0, options)
    for found, expected in zip(gradients(module, x, k, options), wanted, strict=True):
        assert torch.equal(found, expected)


def op_arguments(keep_every):
    x, weights = torch.randn(3, 2, I), [torch.randn(4 * H, I), torch.randn(4 * H, H)]
    saved = [torch.randn(3, 2, H), torch.empty(0), torch.randn(1, 6, H)]
    none = [None] * 4
    needs = [True] * 7
    return [torch.ones(3, 2, H), None, None, None, x, None, None, None, weights, [False], *none,
            *saved, needs, keep_every, False]  # fmt: skip


def test_a_negative_number_of_steps_is_refused(extension):
    """By both ops: the saved tensors have no gates then."""
    backward = torch.ops.fused_lstm.lstm_sequence_backward
    with pytest.raises(RuntimeError, match="expected keep_every of at least 0, got -1"):
        backward(*op_arguments(-1))
    assert len(backward(*op_arguments(2))) == 7


@pytest.mark.parametrize("state", [0, 1], ids=["h", "c"])
def test_an_infinite_gradient_stays_in_its_piece(backend, state):
    """It comes to no state before a reset, and not as infinity times zero either."""
    torch.manual_seed(0)
    module = fused_lstm.LSTM(I, H)
    hx = tuple(torch.randn(1, 3, H, requires_grad=True) for _ in range(2))
    reset = torch.zeros(T, 3, dtype=torch.bool)
    reset[0, 0] = reset[T // 2, 1] = True
    _, last = module(torch.randn(T, 3, I), hx, reset=reset)
    grad = torch.ones(1, 3, H)
    grad[:, :2] = torch.inf
    found = torch.autograd.grad(last[state], hx, grad)
    for g in found:
        assert torch.equal(g[:, :2], torch.zeros(1, 2, H))
        assert g[:, 2].isfinite().all()
        assert g[:, 2].abs().sum() > 0
