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


# Times


MS = 2.0**-10  # about: its multiples are exact


class FakeLSTM:
    """Runs of known length: of an ``nn.LSTM`` 4 ms, of ours 1 ms, the first of each a second more.

    The first after the other one's turn takes 7 ms more, and in the third round all take 50.
    """

    def __init__(self):
        self.module, self.now, self.last, self.known = nn.LSTM(4, 6), 0.0, None, set()
        self.timed = []  # begin and end of each block

    def timer(self):
        self.timed.append(self.now)
        return self.now

    def run(self):
        kind = type(self.module)
        self.now += (4 if kind is nn.LSTM else 1) * MS
        self.now += (kind not in self.known) * 1.0 + (kind is not self.last) * 7 * MS
        if len(self.timed) // 4 == 3:
            self.now += 50 * MS
        self.known.add(kind)
        self.last = kind


@pytest.fixture
def fake(monkeypatch):
    fake = FakeLSTM()
    monkeypatch.setattr("torch.utils.benchmark.utils.timer.timer", fake.timer)
    return fake


def test_a_time_is_the_median_of_warm_runs(fake):
    assert _profile._by_turns(fake.module, fake.run, rounds=5) == (4 * MS, MS)
    assert type(fake.module) is nn.LSTM


def test_what_is_timed_is_long_enough(fake):
    """Of both, also where what measures the machine comes before."""
    _profile._by_turns(fake.module, fake.run, rounds=5)
    blocks = [b - a for a, b in zip(fake.timed[::2], fake.timed[1::2], strict=True)]
    assert len(blocks) == 2 + 2 * 5
    assert min(blocks[2:]) == 11 * MS > _profile._SHORTEST > 10 * MS
    assert max(blocks[2:6]) == 11 * 4 * MS


def test_the_turns_change(fake):
    order = []
    _profile._by_turns(fake.module, lambda: order.append(type(fake.module)) or fake.run(), rounds=4)
    order = [kind for kind, last in zip(order, [None, *order], strict=False) if kind is not last]
    ours, theirs = fused_lstm.LSTM, nn.LSTM
    assert order == [theirs, ours, theirs, ours, theirs, ours]


def test_the_report_in_numbers():
    lstm = _profile.LSTMProfile("rnn", [(7, 3, 4)], 2, ["layer 0: panels"], 0.03, 0.01, 2e-7)
    found = _profile.Profile(0.04, 0.016, 1e-6, False, 2, [lstm], ["odd: left as it is"])
    assert str(found).splitlines() == [
        "the model, forward, 2 threads: 40 ms -> 16 ms, 2.50 times faster, outputs differ by "
        "1.0e-06",
        "rnn: input [7, 3, 4], 2 calls",
        "    30 ms -> 10 ms, 3.00 times faster, 75% -> 62% of the model, outputs differ by 2.0e-07",
        "    layer 0: panels",
        "odd: left as it is",
    ]


# The calls of an LSTM


class Encoder(nn.Module):
    """Calls its LSTM once with each of these numbers of steps, by keywords, the state first."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.lstm = steps, nn.LSTM(4, 6)

    def forward(self, x):
        state = (x.new_zeros(1, 3, 6), x.new_zeros(1, 3, 6))
        return [self.lstm(hx=state, input=x[:n])[0] for n in self.steps]


@pytest.mark.usefixtures("_quickly")
def test_shapes_are_those_of_the_input():
    (lstm,) = profile(Encoder([7, 2]), X).lstms
    assert lstm.shapes == [(7, 3, 4), (2, 3, 4)]


def test_eight_calls_are_measured_on_their_own(monkeypatch):
    """Those of further shapes count as the first."""
    seconds = iter([(9.0, 9.0), *((float(n), 0.5 * n) for n in range(1, 9))])
    monkeypatch.setattr(_profile, "_by_turns", lambda module, run, rounds: next(seconds))
    (lstm,) = profile(Encoder([*range(1, 11)]), torch.randn(10, 3, 4)).lstms
    assert lstm.shapes == [(n, 3, 4) for n in range(1, 9)]
    assert lstm.calls == 10
    assert lstm.before == 3 * 1 + sum(range(2, 9))
    assert lstm.after == 0.5 * lstm.before


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
