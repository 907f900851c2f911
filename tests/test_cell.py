"""LSTMCell does what nn.LSTMCell does."""

import copy
import pickle

import oracle
import pytest
import torch
from cases import DTYPE_IDS, DTYPES, complaint
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import fused_lstm


def pair(bias=True, dtype=torch.float32, device="cpu"):
    theirs = nn.LSTMCell(4, 6, bias, device=device, dtype=dtype)
    ours = fused_lstm.LSTMCell(4, 6, bias, device=device, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(3,), (1,), (0,), ()], ids=["batch", "one", "empty", "unbatched"]
)
@pytest.mark.parametrize("hx", [True, False])
def test_values_and_gradients(backend, device, dtype, bias, shape, hx):
    theirs, ours = pair(bias, dtype, device)
    options = dict(dtype=dtype, device=device)
    x = torch.randn(*shape, 4, **options)
    state = (torch.randn(*shape, 6, **options), torch.randn(*shape, 6, **options))
    columns = []
    for module in (ours, theirs, copy.deepcopy(theirs).double()):
        own = module.weight_ih.dtype
        leaf = x.detach().to(own).requires_grad_()
        h, c = module(leaf, tuple(s.to(own) for s in state) if hx else None)
        (h.double().sin().sum() + c.double().sum()).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
        columns.append([h, c, leaf.grad, *grads])
    names = ["h", "c", "gradient of x", *(f"gradient of {n}" for n, _ in ours.named_parameters())]
    for name, *three in zip(names, *columns, strict=True):
        assert three[0].shape == three[1].shape, name
        oracle.assert_as_accurate(*three, name)


def test_derivatives(backend, device):
    _, ours = pair(dtype=torch.float64, device=device)
    inputs = [torch.randn(2, n, dtype=torch.float64, device=device) for n in (4, 6, 6)]
    inputs = [t.requires_grad_() for t in inputs]
    assert gradcheck(lambda x, h, c: ours(x, (h, c)), inputs)
    assert gradgradcheck(lambda x, h, c: ours(x, (h, c)), inputs)


def test_a_loop_of_cells_is_a_layer(backend):
    layer = fused_lstm.LSTM(4, 6)
    cell = fused_lstm.LSTMCell(4, 6)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x, hx, hs = torch.randn(5, 3, 4), None, []
    for step in x:
        hx = cell(step, hx)
        hs.append(hx[0])
    torch.testing.assert_close(torch.stack(hs), layer(x)[0])


def state(*sizes):
    return torch.randn(sizes)


WRONG = {
    "three dimensions": lambda m: m(state(2, 3, 4)),
    "input_size": lambda m: m(state(2, 5)),
    "input_size unbatched": lambda m: m(state(5)),
    "hx 3-D": lambda m: m(state(2, 4), (state(2, 3, 6), state(2, 6))),
    "cx 3-D": lambda m: m(state(2, 4), (state(2, 6), state(2, 3, 6))),
    "h batch": lambda m: m(state(2, 4), (state(3, 6), state(3, 6))),
    "c batch": lambda m: m(state(2, 4), (state(2, 6), state(3, 6))),
    "h size": lambda m: m(state(2, 4), (state(2, 5), state(2, 6))),
    "c size": lambda m: m(state(2, 4), (state(2, 6), state(2, 5))),
    "h 1-D for batched": lambda m: m(state(2, 4), (state(6), state(6))),
    "h 2-D for unbatched": lambda m: m(state(4), (state(1, 6), state(1, 6))),
    "hx of one": lambda m: m(state(2, 4), (state(2, 6),)),
    "h alone": lambda m: m(state(3, 4), state(3, 6)),
    "h and c in one tensor": lambda m: m(state(3, 4), state(2, 3, 6)),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_those_of_nn_lstm_cell(backend, name):
    theirs, ours = pair()
    assert complaint(lambda: WRONG[name](ours)) == complaint(lambda: WRONG[name](theirs))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: m(state(6, 4), (state(6), state(6))), "hidden0 must have 2 dimensions"),
        (lambda m: m(state(4), (state(6, 6), state(6, 6))), "hidden0 must have 1 dimensions"),
    ],
)
def test_states_of_the_wrong_rank_that_fit_by_accident(backend, call, text):
    _, ours = pair()
    kind, found = complaint(lambda: call(ours))
    assert kind is RuntimeError
    assert found.startswith(text)


def test_wrong_dtypes(backend):
    _, ours = pair()
    for call in (
        lambda: ours(state(2, 4).double()),
        lambda: ours(state(2, 4), (state(2, 6).double(), state(2, 6))),
    ):
        kind, text = complaint(call)
        assert kind is RuntimeError
        assert "not the same dtype" in text


@pytest.mark.parametrize("hx", [None, torch.float32, torch.bfloat16])
def test_autocast(backend, hx):
    theirs, ours = pair()
    x, h = torch.randn(3, 4), torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        given = None if hx is None else (h.to(hx), h.to(hx))
        found, expected = ours(x, given), theirs(x, given)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("without", [["bias_ih"], ["bias_hh"], ["bias_ih", "bias_hh"]], ids=str)
def test_biases_that_are_set_to_none(backend, without):
    """nn.LSTMCell adds those that are left."""
    found = []
    for module in pair():
        for name in without:
            setattr(module, name, None)
        h, c = module(torch.ones(3, 4))
        (h.sum() + c.sin().sum()).backward()
        found.append([h, c, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
def test_module_contract(backend):
    theirs, ours = pair()
    x = torch.randn(3, 4)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(other(x), theirs(x))
    torch.testing.assert_close(ours.double()(x.double()), theirs.double()(x.double()))
    for module in (ours, theirs):
        nn.utils.weight_norm(module, "weight_hh")
    torch.testing.assert_close(ours(x.double()), theirs(x.double()))


def test_results_may_be_changed_and_detached_in_place(backend):
    """They are no views, as nn.LSTMCell's are none: truncated backpropagation detaches them."""
    _, ours = pair()
    x = torch.randn(3, 4)
    h, c = ours(x)
    assert not any(t._is_view() for t in (h, c))
    h.detach_()
    c.mul_(2).sum().backward()
    assert ours.weight_ih.grad.any()
    with torch.no_grad():
        h, c = ours(x, (h, c))
    h.mul_(torch.nn.Parameter(torch.ones(6)))
    assert h.requires_grad
