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


def test_subclasses_are_layers_too():
    class Mine(nn.LSTM):
        pass

    layer = Mine(3, 4, 2, bidirectional=True, proj_size=2)
    fused_lstm.initialise(layer, input="zeros", recurrent="zeros")
    assert (layer.bias_ih_l1_reverse[4:8] == 1).all()
    assert sum(p.abs().sum() for p in layer.parameters()) == 4 * 4
