"""Under a transform the same arguments are refused as without one, in the same words."""

import pytest
import torch
from cases import complaint
from torch import nn
from torch.autograd import forward_ad

import fused_lstm


def by_jvp(call, x):
    return torch.func.jvp(call, (x,), (torch.ones_like(x),))


def by_forward_ad(call, x):
    with forward_ad.dual_level():
        return call(forward_ad.make_dual(x, torch.ones_like(x)))


def by_hessian(call, x):
    return torch.func.jacfwd(torch.func.jacrev(lambda x: call(x).sum()))(x)


def by_vmap(call, x):
    return torch.func.vmap(call)(x.unsqueeze(0))


TRANSFORMS = [by_jvp, by_forward_ad, by_hessian, by_vmap]
X = torch.randn(5, 3, 4)


def zeros(*sizes):
    return torch.zeros(sizes)


WRONG = {
    "dtype of x": (X.double(), None),
    "dtype of h0": (X, (zeros(2, 3, 6).double(), zeros(2, 3, 6))),
    "dtype of c0": (X, (zeros(2, 3, 6), zeros(2, 3, 6).half())),
    "batch of h0": (X, (zeros(2, 1, 6), zeros(2, 3, 6))),
    "batch of c0": (X, (zeros(2, 3, 6), zeros(2, 1, 6))),
    "features of c0": (X, (zeros(2, 3, 6), zeros(2, 3, 1))),
    "features of x": (torch.randn(5, 3, 1), None),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", WRONG)
def test_arguments_that_do_not_fit(backend, name, transform):
    x, hx = WRONG[name]
    theirs, ours = nn.LSTM(4, 6, 2), fused_lstm.LSTM(4, 6, 2)
    expected = complaint(lambda: ours(x, hx))
    if "dtype" not in name:  # of dtypes nn.LSTM says less
        assert expected == complaint(lambda: theirs(x, hx))
    assert complaint(lambda: transform(lambda x: ours(x, hx)[0], x)) == expected


CELL = {
    "features of x": (torch.randn(3, 5), None),
    "batch of c": (X[0], (zeros(3, 6), zeros(1, 6))),
    "rank of h": (X[0], (zeros(1, 3, 6), zeros(3, 6))),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", CELL)
def test_arguments_of_a_cell_that_do_not_fit(backend, name, transform):
    x, hx = CELL[name]
    ours = fused_lstm.LSTMCell(4, 6)
    expected = complaint(lambda: nn.LSTMCell(4, 6)(x, hx))
    assert complaint(lambda: transform(lambda x: ours(x, hx)[0], x)) == expected


RESET = torch.ones(5, 3, dtype=torch.bool)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("which", [0, 1])
def test_states_after_resets_that_do_not_fit(backend, which, transform):
    states = [torch.zeros(1, 3, 6), torch.zeros(1, 3, 6)]
    states[which] = torch.zeros(1, 3, 1)
    ours = fused_lstm.LSTM(4, 6)
    options = dict(reset=RESET, reset_hx=tuple(states))
    name = ("reset_h", "reset_c")[which]
    with pytest.raises(
        RuntimeError, match=rf"expected {name} of shape \[1, 3, 6\], got \[1, 3, 1\]"
    ):
        transform(lambda x: ours(x, **options)[0], X)
