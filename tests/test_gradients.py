"""First, second and third derivatives, by finite differences in float64."""

import itertools

import pytest
import torch
from cases import Case, leaves
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import fused_lstm
from fused_lstm import _ops

CASES = {
    "plain": Case(),
    "one_of_everything": Case(T=1, B=1, I=1, H=1),
    "no_bias": Case(bias=False),
    "projection": Case(P=2),
    "bidirectional": Case(bidirectional=True),
    "packed": Case(kind="packed"),
    "packed_bidirectional_projection": Case(kind="packed", bidirectional=True, P=2),
    "unbatched": Case(kind="unbatched"),
    "batch_first_two_layers": Case(batch_first=True, layers=2),
}
SMALL = dict(T=3, B=2, I=2, H=3, dtype=torch.float64)


def function_of(case):
    """``lstm`` as a function of tensors only, and tensors to differentiate it at."""
    theirs, _ = case.modules()
    sequences, (h0, c0) = case.sequences(), case.state()
    groups = [len(group) for group in theirs.all_weights]
    flat = [p for group in theirs.all_weights for p in group]
    if case.kind == "unbatched":
        h0, c0 = h0.squeeze(1), c0.squeeze(1)

    def function(h0, c0, *rest):
        xs, weights = rest[: len(sequences)], iter(rest[len(sequences) :])
        y, (h_n, c_n) = fused_lstm.lstm(
            case.pack(list(xs)),
            (h0, c0),
            [[next(weights) for _ in range(n)] for n in groups],
            batch_first=case.batch_first,
            bidirectional=case.bidirectional,
        )
        return y.data if case.kind == "packed" else y, h_n, c_n

    return function, leaves([h0, c0, *sequences, *flat])


@pytest.mark.core
@pytest.mark.parametrize("name", CASES)
def test_first_derivative(backend, device, name):
    function, inputs = function_of(CASES[name].with_(**{**SMALL, "device": device}))
    assert gradcheck(function, inputs, fast_mode=False)


@pytest.mark.parametrize("name", CASES)
def test_second_derivative(backend, device, name):
    function, inputs = function_of(CASES[name].with_(**{**SMALL, "device": device}))
    assert gradgradcheck(function, inputs, fast_mode=True)


def test_third_derivative(backend, device):
    function, inputs = function_of(Case(T=2, B=1, I=1, H=2, dtype=torch.float64, device=device))

    def gradient(*inputs):
        loss = sum(t.pow(2).sum() for t in function(*inputs))
        return torch.autograd.grad(loss, inputs, create_graph=True)

    assert gradgradcheck(gradient, inputs, fast_mode=True)


@pytest.mark.parametrize("kept", list(itertools.product([False, True], repeat=3))[1:])
def test_derivatives_of_some_outputs(backend, device, kept):
    """A loss may use any subset of output, h_n and c_n: the others have no gradient at all."""
    function, inputs = function_of(CASES["plain"].with_(**{**SMALL, "device": device}))

    def some(*inputs):
        return tuple(t for t, keep in zip(function(*inputs), kept, strict=True) if keep)

    assert gradcheck(some, inputs, fast_mode=True)
    assert gradgradcheck(some, inputs, fast_mode=True)


def test_an_unused_output_costs_no_tensor_of_zeros(extension, device):
    given = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op is _ops.lstm_layer_backward:
                given.append([grad is not None for grad in args[:3]])
            return op(*args, **(kwargs or {}))

    function, inputs = function_of(CASES["plain"].with_(**{**SMALL, "device": device}))
    for used in range(3):
        loss = function(*inputs)[used].sum()
        with Spy():
            loss.backward()
    assert given == [[True, False, False], [False, True, False], [False, False, True]]


@pytest.mark.parametrize("name", ["plain", "packed_bidirectional_projection"])
def test_derivatives_in_each_input_alone(backend, device, name):
    """Whatever else is a constant, each gradient is the one that a full backward gives."""
    function, inputs = function_of(CASES[name].with_(**{**SMALL, "device": device}))
    loss = sum(t.sin().sum() for t in function(*inputs))
    everything = torch.autograd.grad(loss, inputs)
    for k, tensor in enumerate(inputs):
        alone = [t.detach() for t in inputs]
        alone[k] = tensor
        loss = sum(t.sin().sum() for t in function(*alone))
        torch.testing.assert_close(torch.autograd.grad(loss, tensor)[0], everything[k])


def test_a_hessian_by_torch_func(backend, device):
    """torch.func sees through the function, and agrees with autograd."""
    case = Case(T=2, B=2, I=2, H=2, dtype=torch.float64, device=device)
    function, inputs = function_of(case)
    fixed = [t.detach() for t in inputs]

    def loss(h0):
        return sum(t.sin().sum() for t in function(h0, *fixed[1:]))

    by_func = torch.func.grad(lambda h: torch.func.grad(loss)(h).sin().sum())(fixed[0])
    h0 = inputs[0]
    (first,) = torch.autograd.grad(loss(h0), h0, create_graph=True)
    (second,) = torch.autograd.grad(first.sin().sum(), h0)
    torch.testing.assert_close(by_func, second)


def test_a_gradient_penalty_trains_the_weights(backend, device):
    """The use that second derivatives have in practice, against nn.LSTM's own."""
    theirs, ours = Case(layers=2, dtype=torch.float64, device=device).modules()
    x = torch.randn(5, 3, 4, dtype=torch.float64, device=device)
    for module in (theirs, ours):
        xs = x.clone().requires_grad_()
        y, _ = module(xs)
        (dx,) = torch.autograd.grad(y.sum(), xs, create_graph=True)
        (dx.norm() - 1).pow(2).backward()
    for (name, p), q in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=lambda m, name=name: f"{name}: {m}")
