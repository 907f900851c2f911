"""Resets as reinforcement learning computes them today, stated again on small tensors."""

import pytest
import torch

import fused_lstm

T, B, I, H = 7, 4, 3, 5  # noqa: E741


@pytest.fixture
def problem():
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(I, H, 2).double()
    ours = fused_lstm.LSTM(I, H, 2, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, I).double().requires_grad_()
    hx = tuple(torch.randn(2, B, H).double().requires_grad_() for _ in range(2))
    starts = torch.rand(T, B) < 0.3
    starts[0, 1] = True
    return theirs, ours, x, hx, starts


def assert_same(ours, theirs, modules, inputs):
    """Values, and gradients of a sum of squares."""
    torch.testing.assert_close(ours, theirs)
    grads = []
    for (y, state), module in zip((ours, theirs), modules, strict=True):
        loss = sum(t.square().sum() for t in (y, *state))
        grads.append(torch.autograd.grad(loss, [*inputs, *module.parameters()]))
    torch.testing.assert_close(*grads)


def test_stable_baselines_recurrent_ppo(problem):
    """Its policies run rows of environments step by step, states times (1 - episode_start)."""
    theirs, ours, x, hx, starts = problem
    flat = x.transpose(0, 1).reshape(B * T, I)  # the buffer's order
    state, outputs = hx, []
    features = flat.reshape(B, T, I).swapaxes(0, 1)
    episode_starts = starts.double()
    for step, start in zip(features, episode_starts, strict=True):
        keep = (1.0 - start).view(1, B, 1)
        y, state = theirs(step.unsqueeze(0), (keep * state[0], keep * state[1]))
        outputs.append(y)
    found = ours(features, hx, reset=episode_starts.bool())
    assert_same(found, (torch.cat(outputs), state), (ours, theirs), [x, *hx])


def test_torchrl_splits_trajectories(problem):
    """Its LSTMModule splits rows at is_init, pads the pieces and runs them as a larger batch."""
    theirs, _ours, x, _, starts = problem
    is_init = starts.t().clone()  # [B, T]
    is_init[:, 0] = True
    pieces = []
    for b in range(B):
        begins = is_init[b].nonzero().flatten().tolist()
        pieces += [(b, s, e) for s, e in zip(begins, [*begins[1:], T], strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence([x[s:e, b] for b, s, e in pieces])
    y, _ = theirs(padded)
    wanted = torch.stack(
        [
            torch.cat([y[: e - s, k] for k, (row, s, e) in enumerate(pieces) if row == b])
            for b in range(B)
        ]
    )
    layer = fused_lstm.LSTM(I, H, 2, batch_first=True, dtype=torch.float64)
    layer.load_state_dict(theirs.state_dict())
    found, _ = layer(x.transpose(0, 1), reset=is_init)
    assert_same((found, ()), (wanted, ()), (layer, theirs), [x])
