"""Chunks of the backward pass where sequences end early: of several steps, by their live rows."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_lstm

T, B, I = 11, 700, 3  # noqa: E741
# Live at the steps: 700, 500, 300 and so on, so that a chunk of up to 1024 rows is one step or two
# at the beginning and seven at the end; walked backwards they begin elsewhere.
LENGTHS = torch.tensor([1] * 200 + [2] * 200 + [3] * 160 + [7] * 60 + [8] * 40 + [11] * 40)


def modules(H, P, dtype):
    torch.manual_seed(0)
    options = dict(bidirectional=True, proj_size=P, dtype=dtype)
    theirs = nn.LSTM(I, H, 1, **options)
    ours = fused_lstm.LSTM(I, H, 1, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def gradients(module, x, run):
    x = x.clone().requires_grad_()
    y, (h_n, c_n) = run(x)
    loss = y.sin().sum() + h_n.cos().sum() + c_n.sum()
    return torch.autograd.grad(loss, [x, *module.parameters()])


@pytest.mark.core
@pytest.mark.parametrize("P", [0, 2])
def test_gradients(extension, P):
    theirs, ours = modules(6, P, torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)

    def packed(x):
        y, last = theirs(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
        return y.data, last

    wanted = gradients(theirs, x, packed)
    found = gradients(ours, x, lambda x: ours(x, lengths=LENGTHS))
    torch.testing.assert_close(found, wanted)
    plan = extension.last_cpu_plan(backward=True)
    assert plan["chunk"] == T
    assert "batched over up to 1024 rows" in fused_lstm.explain(ours, x, lengths=LENGTHS)


@pytest.mark.core
@pytest.mark.parametrize("k", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(("H", "P"), [(6, 0), (6, 2), (40, 0)])
def test_computed_again_to_the_last_bit(extension, H, P, k):
    _, ours = modules(H, P, torch.float32)
    x = torch.randn(T, B, I)
    wanted = gradients(ours, x, lambda x: ours(x, lengths=LENGTHS))
    ours.recompute = k
    for a, b in zip(gradients(ours, x, lambda x: ours(x, lengths=LENGTHS)), wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("threads", [1, 2])
def test_resets_that_make_pieces_of_many_lengths(backend, threads):
    """As a call for each piece."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x = torch.randn(40, 120, I, dtype=torch.float64)
    reset = torch.rand(40, 120) < 0.1
    lstm = fused_lstm.LSTM(I, 5, dtype=torch.float64)

    def by_hand(x):
        rows, last = [], []
        for b in range(x.size(1)):
            cuts = [0, *(t for t in range(1, 40) if reset[t, b]), 40]
            pieces = [lstm(x[s:e, b]) for s, e in itertools.pairwise(cuts)]
            rows.append(torch.cat([y for y, _ in pieces]))
            last.append(pieces[-1][1])
        h_n, c_n = (torch.stack([state[i] for state in last], 1) for i in range(2))
        return torch.stack(rows, 1), (h_n, c_n)

    wanted = gradients(lstm, x, by_hand)
    torch.testing.assert_close(gradients(lstm, x, lambda x: lstm(x, reset=reset)), wanted)
