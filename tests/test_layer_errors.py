"""Wrong arguments are refused in nn.LSTM's own words: both are called and compared."""

import warnings

import pytest
import torch
from cases import complaint
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fused_lstm

CONSTRUCTORS = {
    "dropout too large": dict(dropout=1.5),
    "dropout a bool": dict(dropout=True),
    "bias not a bool": dict(bias=1),
    "batch_first not a bool": dict(batch_first=1),
    "input_size zero": dict(input_size=0),
    "input_size not an int": dict(input_size=4.0),
    "hidden_size zero": dict(hidden_size=0),
    "hidden_size not an int": dict(hidden_size="6"),
    "num_layers zero": dict(num_layers=0),
    "proj_size negative": dict(proj_size=-1),
    "proj_size too large": dict(proj_size=6),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructor(name):
    arguments = dict(input_size=4, hidden_size=6) | CONSTRUCTORS[name]
    raised = []
    for cls in (nn.LSTM, fused_lstm.LSTM):
        try:
            cls(**arguments)
            raised.append(None)  # torch 2.10 takes some of them
        except Exception as error:
            raised.append((type(error), str(error)))
    assert raised[1] == raised[0]


def test_dropout_on_one_layer_warns():
    for cls in (nn.LSTM, fused_lstm.LSTM):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
            cls(4, 6, dropout=0.5)


DENSE = {
    "four dimensions": lambda m: m(torch.randn(2, 5, 3, 4)),
    "one dimension": lambda m: m(torch.randn(4)),
    "input_size": lambda m: m(torch.randn(5, 3, 7)),
    "input_size unbatched": lambda m: m(torch.randn(5, 7)),
    "dtype": lambda m: m(torch.randn(5, 3, 4).double()),
    "integers": lambda m: m(torch.ones(5, 3, 4, dtype=torch.long)),
    "zero steps": lambda m: m(torch.randn(0, 3, 4)),
    "zero steps unbatched": lambda m: m(torch.randn(0, 4)),
    "device": lambda m: m(torch.randn(5, 3, 4, device="meta")),
    "hx 2-D for batched": lambda m: m(torch.randn(5, 3, 4), (torch.randn(3, 6),) * 2),
    "cx 2-D for batched": lambda m: m(
        torch.randn(5, 3, 4), (torch.randn(2, 3, 6), torch.randn(3, 6))
    ),
    "hx 3-D for unbatched": lambda m: m(torch.randn(5, 4), (torch.randn(2, 1, 6),) * 2),
    "h0 batch": lambda m: m(torch.randn(5, 3, 4), (torch.randn(2, 4, 6), torch.randn(2, 3, 6))),
    "c0 batch": lambda m: m(torch.randn(5, 3, 4), (torch.randn(2, 3, 6), torch.randn(2, 4, 6))),
    "h0 layers": lambda m: m(torch.randn(5, 3, 4), (torch.randn(1, 3, 6), torch.randn(2, 3, 6))),
    "c0 hidden": lambda m: m(torch.randn(5, 3, 4), (torch.randn(2, 3, 6), torch.randn(2, 3, 5))),
    "hx unbatched size": lambda m: m(torch.randn(5, 4), (torch.randn(2, 7), torch.randn(2, 6))),
    "not a tensor": lambda m: m([1.0, 2.0]),
    "hx of one": lambda m: m(torch.randn(5, 3, 4), (torch.randn(2, 3, 6),)),
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_calls(backend, name):
    theirs, ours = nn.LSTM(4, 6, 2), fused_lstm.LSTM(4, 6, 2)
    assert complaint(lambda: DENSE[name](ours)) == complaint(lambda: DENSE[name](theirs))


@pytest.mark.parametrize("name", ["input_size", "h0 batch", "c0 hidden"])
def test_with_projection_and_batch_first(backend, name):
    modules = [c(4, 6, 2, batch_first=True, proj_size=2) for c in (nn.LSTM, fused_lstm.LSTM)]
    theirs, ours = (complaint(lambda m=m: DENSE[name](m)) for m in modules)
    assert ours == theirs


def packed(*sizes):
    return pack_sequence([torch.randn(n, sizes[-1]) for n in sizes[:-1]], enforce_sorted=False)


def state(*sizes):
    return torch.randn(sizes)


# nn.LSTM lets these pass its own checks and fails in a matrix product, or not at all: we say what
# is wrong as for dense input.
PACKED = {
    "input_size": (lambda m: m(packed(2, 4, 7)), "input.size(-1) must be equal to input_size"),
    "dtype": (lambda m: m(packed(2, 4, 4).double()), "torch.float64"),
    "h0 batch": (
        lambda m: m(packed(2, 4, 4), (state(2, 3, 6), state(2, 2, 6))),
        "Expected hidden[0] size (2, 2, 6), got [2, 3, 6]",
    ),
    "c0 hidden": (
        lambda m: m(packed(2, 4, 4), (state(2, 2, 6), state(2, 2, 5))),
        "Expected hidden[1] size (2, 2, 6), got [2, 2, 5]",
    ),
    "hx 2-D": (
        lambda m: m(packed(2, 4, 4), (state(2, 6), state(2, 6))),
        "Expected hidden[0] size (2, 2, 6), got [2, 6]",
    ),
    "3-D rows": (
        lambda m: m(pack_sequence([torch.randn(4, 4, 4)])),
        "input must have 2 dimensions, got 3",
    ),
    "hx dtype": (
        lambda m: m(packed(2, 4, 4), (state(2, 2, 6).double(), state(2, 2, 6))),
        "Input and hidden tensors are not the same dtype, found input tensor with torch.float32",
    ),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_calls(backend, name):
    call, text = PACKED[name]
    kind, found = complaint(lambda: call(fused_lstm.LSTM(4, 6, 2)))
    assert kind in (RuntimeError, ValueError)
    assert text in found


def test_states_of_another_dtype(backend):
    x, h = torch.randn(5, 3, 4), torch.randn(2, 3, 6)
    for hx in ((h.double(), h), (h, h.half())):
        kind, found = complaint(lambda hx=hx: fused_lstm.LSTM(4, 6, 2)(x, hx))
        assert kind is RuntimeError
        assert "hidden tensors are not the same dtype" in found


def test_a_state_in_one_tensor_of_another_dtype(backend):
    x, hx = torch.randn(5, 3, 4), torch.randn(2, 2, 3, 6).double()
    kind, found = complaint(lambda: fused_lstm.LSTM(4, 6, 2)(x, hx))
    assert kind is RuntimeError
    assert "hidden tensors are not the same dtype" in found


@pytest.mark.parametrize("which", ["h0", "c0", "both"])
@pytest.mark.parametrize("form", ["batched", "unbatched", "packed", "cell", "unbatched cell"])
def test_a_state_that_is_none(backend, form, which):
    """nn.LSTM fails on it, and so it is not taken for zeros; what means zeros is said."""
    size = {"unbatched": (2, 6), "cell": (3, 6), "unbatched cell": (6,)}.get(form, (2, 3, 6))
    h, c = torch.zeros(size), torch.zeros(size)
    hx = {"h0": (None, c), "c0": (h, None), "both": (None, None)}[which]
    x = torch.randn(5, 3, 4)
    x = {
        "unbatched": x[:, 0],
        "packed": packed(2, 4, 3, 4),
        "cell": x[0],
        "unbatched cell": x[0, 0],
    }.get(form, x)
    module = fused_lstm.LSTMCell(4, 6) if "cell" in form else fused_lstm.LSTM(4, 6, 2)
    with pytest.raises(TypeError, match=r"hx of two tensors.*None.*pass hx=None for zeros"):
        module(x, hx)


def test_good_calls_do_not_warn(extension):
    module = fused_lstm.LSTM(4, 6, 2, proj_size=3, bidirectional=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(torch.randn(5, 3, 4))[0].sum().backward()
        module(packed(2, 4, 4))
