"""profile(): every number that it reports was measured, and of what it says."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fused_lstm
from fused_lstm import _profile

X = torch.randn(7, 3, 4)


def profile(model, inputs, **options):
    return fused_lstm.profile(model, inputs, rounds=1, say=None, **options)


@pytest.fixture
def _quickly(monkeypatch):
    """What comes out is not looked at as a time."""
    monkeypatch.setattr(_profile, "_SHORTEST", 0.0)
    torch.set_num_threads(1)


# What counts as an output, and as a gradient


@dataclass
class Output:
    """What some libraries return."""

    number: int
    logits: torch.Tensor


class Opaque:
    """What nobody can look into."""

    def __init__(self, logits):
        self.logits = logits


class Returning(nn.Module):
    """A model whose output is wrapped."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap, self.lstm, self.head = wrap, nn.LSTM(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.wrap(self.head(self.lstm(x)[0]))


WRAPS = {
    "tensor": lambda y: y,
    "dataclass": lambda y: Output(3, y),
    "nested": lambda y: [{"deep": (Output(3, y),)}],
}


@pytest.mark.usefixtures("_quickly")
@pytest.mark.parametrize("wrap", WRAPS)
def test_gradients_of_every_parameter_are_computed(wrap):
    model, seen, modes = Returning(WRAPS[wrap]), set(), set()
    for name, p in model.named_parameters():
        p.register_hook(lambda grad, name=name: seen.add(name))
    model.register_forward_pre_hook(lambda *_: modes.add(torch.is_grad_enabled()))
    found = profile(model, X)
    assert modes == {False}
    assert not seen
    assert found.difference < 1e-5
    found = profile(model, X, backward=True)
    assert seen == {name for name, _ in model.named_parameters()}
    assert "forward and backward" in str(found)


@pytest.mark.usefixtures("_quickly")
def test_gradients_of_inputs_are_computed():
    model, x, seen = Returning(WRAPS["tensor"]).requires_grad_(False), X.clone(), []
    x.requires_grad_().register_hook(lambda grad: seen.append(grad.shape))
    profile(model, x, backward=True)
    assert set(seen) == {X.shape}


@pytest.mark.usefixtures("_quickly")
def test_outputs_that_cannot_be_seen_are_not_equal():
    found = profile(Returning(Opaque), X)
    assert found.difference is None
    assert "no outputs of floating point to compare" in str(found).splitlines()[0]


NO_GRADIENTS = {"opaque": Opaque, "detached": torch.Tensor.detach, "frozen": lambda y: y}


@pytest.mark.parametrize("name", NO_GRADIENTS)
def test_a_model_without_gradients_has_no_backward(name):
    model = Returning(NO_GRADIENTS[name]).requires_grad_(name != "frozen")
    with pytest.raises(ValueError, match="expected outputs that require a gradient"):
        profile(model, X, backward=True)
    assert type(model.lstm) is nn.LSTM
