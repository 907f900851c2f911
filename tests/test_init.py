"""initialise() fills an LSTM's own weights, and says so where it is given anything else."""

import pytest
import torch
from torch import nn

import fused_lstm


def values(layer):
    return [p.detach().clone() for p in layer.parameters()]


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = fused_lstm.LSTM(3, 4)


@pytest.mark.parametrize("module", [Holder(), nn.GRU(3, 4), nn.RNN(3, 4), nn.GRUCell(3, 4)])
def test_other_modules_are_refused(module):
    before = values(module)
    name = type(module).__qualname__
    with pytest.raises(TypeError, match=rf"expected an LSTM or an LSTMCell.*, got .*{name}"):
        fused_lstm.initialise(module)
    assert all(map(torch.equal, before, values(module)))


PARAMETRIZED = {
    "weight norm": lambda layer: nn.utils.weight_norm(layer, "weight_hh_l0"),
    "orthogonal": lambda layer: nn.utils.parametrizations.orthogonal(layer, "weight_hh_l0"),
    "a parameter more": lambda layer: (
        layer.register_parameter("scale", nn.Parameter(torch.ones(1))) or layer
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("name", PARAMETRIZED)
@pytest.mark.parametrize("cls", [fused_lstm.LSTM, nn.LSTM])
def test_weights_that_are_computed_from_others_are_refused(cls, name):
    layer = PARAMETRIZED[name](cls(3, 4))
    before = values(layer)
    with pytest.raises(ValueError, match=r"(weight_hh_l0|scale).*before"):
        fused_lstm.initialise(layer)
    assert all(map(torch.equal, before, values(layer)))


def test_a_name_that_is_none_leaves_all_weights_alone():
    layer = fused_lstm.LSTM(3, 4)
    before = values(layer)
    with pytest.raises(ValueError, match="expected one of xavier_uniform"):
        fused_lstm.initialise(layer, bias="glorot")
    assert all(map(torch.equal, before, values(layer)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layers_of_other_dtypes(dtype):
    """To the rounding of float32's values; of float64 in its own precision."""
    layer = fused_lstm.LSTM(6, 5, 2, proj_size=3, bidirectional=True, dtype=dtype)
    fused_lstm.initialise(layer)
    for gate in layer.weight_hh_l1.chunk(4):
        found = (gate.T @ gate).double()
        units = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(found, torch.eye(3).double(), rtol=0, atol=units)
    assert all(p.dtype == dtype for p in layer.parameters())


@pytest.mark.parametrize("option", ["bias", "recurrent", "input"])
def test_an_initialiser_that_fails_leaves_all_weights_alone(option):
    def late(tensor):
        tensor.fill_(3)
        calls.append(1)
        if len(calls) == 4:
            raise ValueError("cannot")

    calls, layer = [], fused_lstm.LSTM(3, 4)
    before = values(layer)
    with pytest.raises(ValueError, match="cannot"):
        fused_lstm.initialise(layer, **{option: late})
    assert all(map(torch.equal, before, values(layer)))
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        fused_lstm.initialise(layer, bias="xavier_uniform")
    assert all(map(torch.equal, before, values(layer)))


@pytest.mark.parametrize("cls", [fused_lstm.LSTMCell, nn.LSTMCell])
@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
def test_one_bias_carries_the_forget_bias_of_both(cls, missing):
    cell = cls(3, 4)
    setattr(cell, missing, None)
    fused_lstm.initialise(cell, forget_bias=2.0)
    (bias,) = [p for name, p in cell.named_parameters() if name.startswith("bias")]
    assert bias.tolist() == [0.0] * 4 + [2.0] * 4 + [0.0] * 8


def test_kaiming_by_both_names():
    """The widths of torch.nn.init, which tell the uniform distribution from the normal one."""
    layer, bound = fused_lstm.LSTM(50, 100), 1 / 50**0.5
    fused_lstm.initialise(layer, input="kaiming_uniform")
    largest = layer.weight_ih_l0.abs().max().item()
    assert 2.4 * bound < largest <= 6**0.5 * bound
    fused_lstm.initialise(layer, input="kaiming_normal")
    assert layer.weight_ih_l0.abs().max() > 3 * bound
    assert layer.weight_ih_l0.std().item() == pytest.approx(2**0.5 * bound, rel=0.05)


def test_subclasses_are_layers_too():
    class Mine(nn.LSTM):
        pass

    layer = Mine(3, 4, 2, bidirectional=True, proj_size=2)
    fused_lstm.initialise(layer, input="zeros", recurrent="zeros")
    assert (layer.bias_ih_l1_reverse[4:8] == 1).all()
    assert sum(p.abs().sum() for p in layer.parameters()) == 4 * 4
