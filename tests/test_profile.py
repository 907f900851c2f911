"""profile(): a model before and after replace_lstm, LSTM by LSTM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fused_lstm
from fused_lstm import _profile

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    """What comes out is not looked at as a time."""
    monkeypatch.setattr(_profile, "_SHORTEST", 0.0)
    torch.set_num_threads(1)


class Model(nn.Module):
    """An LSTM of two layers that is called once, and a cell that is called for every step."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(4, 6, 2, bidirectional=True, dropout=0.5)
        self.decoder = nn.LSTMCell(12, 5)
        self.odd = Odd(5, 3)

    def forward(self, x, *, scale=1.0):
        y, _ = self.encoder(scale * x)
        state = None
        for y_t in y:
            state = self.decoder(y_t, state)
        return {"h": state[0], "odd": self.odd(state[0])}


class Odd(nn.LSTM):
    """A subclass, which replace_lstm leaves alone."""


X = torch.randn(7, 3, 4)


def profile(model, inputs, **options):
    return fused_lstm.profile(model, inputs, rounds=1, say=None, **options)


def classes(model):
    return {name: type(module) for name, module in model.named_modules()}


@pytest.mark.parametrize("backward", [False, True])
def test_every_lstm_is_seen(backward):
    found = profile(Model(), X, backward=backward)
    encoder, decoder = found.lstms
    assert (encoder.name, encoder.shapes, encoder.calls) == ("encoder", [(7, 3, 4)], 1)
    assert (decoder.name, decoder.shapes, decoder.calls) == ("decoder", [(3, 12)], 7)
    assert found.before > 0
    assert found.after > 0
    assert all(each.before > 0 and each.after > 0 for each in found.lstms)
    assert found.backward is backward


def test_differences_are_those_of_the_arithmetic():
    found = profile(Model().train(), X)  # the dropout between layers takes no part
    assert found.difference < 1e-5
    assert all(each.difference < 1e-5 for each in found.lstms)


def test_a_difference_is_seen(monkeypatch):
    forward = fused_lstm.LSTM.forward

    def wrong(self, *arguments):
        y, state = forward(self, *arguments)
        return y * 1.01, state

    monkeypatch.setattr(fused_lstm.LSTM, "forward", wrong)
    found = profile(nn.LSTM(4, 6), X)
    assert found.lstms[0].difference == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("replaced", [False, True])
def test_the_model_is_left_as_it_was(replaced):
    model = Model().train()
    if replaced:
        model.encoder = fused_lstm.replace_lstm(model.encoder, say=None)
    before, parameters = classes(model), dict(model.named_parameters())
    values = [p.clone() for p in model.parameters()]
    profile(model, X, backward=True)
    assert classes(model) == before
    assert model.training
    assert all(module.training for module in model.modules())
    assert dict(model.named_parameters()) == parameters
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(values, model.parameters(), strict=True))
    assert not model.encoder._forward_pre_hooks


class Stateful(nn.Module):
    """What a forward pass in training mode changes: statistics, vectors, and a count of its own."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, dropout=0.5)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3))
        self.register_buffer("count", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x):
        self.count = self.count + 1  # another tensor in the place of the buffer
        y, _ = self.lstm(x)
        return self.head(self.norm(y[-1]))


@pytest.mark.parametrize("fails", [False, True])
def test_buffers_and_random_numbers_are_left_as_they_were(fails):
    model = Stateful().train()
    before = dict(model.named_buffers())
    values = {name: t.clone() for name, t in before.items()}
    drawn = torch.get_rng_state()
    if fails:
        model.head.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            profile(model, X)
    else:
        profile(model, X, backward=True)
    after = dict(model.named_buffers())
    assert all(after[name] is t for name, t in before.items())
    assert all(torch.equal(after[name], value) for name, value in values.items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_the_model_is_left_as_it_was_after_an_error():
    model = Model()
    before = classes(model)
    with pytest.raises(RuntimeError, match=r"input\.size\(-1\) must be equal to input_size"):
        profile(model, torch.randn(7, 3, 5))
    assert classes(model) == before


@pytest.mark.parametrize(
    "inputs", [X, (X,), [X], {"x": X, "scale": 2.0}], ids=["tensor", "tuple", "list", "mapping"]
)
def test_inputs_come_in_several_forms(inputs):
    assert profile(Model(), inputs).lstms[0].shapes == [(7, 3, 4)]


def test_packed_input_and_a_model_that_is_an_lstm():
    packed = pack_sequence([torch.randn(5, 4), torch.randn(2, 4)])
    found = profile(nn.LSTM(4, 6), packed, backward=True)
    assert found.lstms[0].name == "the model itself"
    assert found.lstms[0].shapes == [(7, 4)]
    assert found.difference < 1e-5


def test_calls_of_several_shapes_are_told_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 6)

        def forward(self, x):
            return self.lstm(x)[0].sum() + self.lstm(x[:2])[0].sum() + self.lstm(x[:2])[0].sum()

    (lstm,) = profile(Twice(), X).lstms
    assert lstm.shapes == [(7, 3, 4), (2, 3, 4)]
    assert lstm.calls == 3


def test_time_is_that_of_all_calls(monkeypatch):
    monkeypatch.setattr(_profile, "_by_turns", lambda module, run, rounds: (2.0, 0.5))
    found = profile(Model(), X)
    assert [(each.before, each.after) for each in found.lstms] == [(2.0, 0.5), (14.0, 3.5)]


def test_the_report_says_it_all(extension):
    said = []
    found = fused_lstm.profile(Model(), X, rounds=1, say=said.append)
    assert said == [str(found)]
    text = str(found)
    assert text.startswith("the model, forward, ")
    assert "encoder: input [7, 3, 4], 1 call\n" in text
    assert "decoder: input [3, 12], 7 calls\n" in text
    assert "    layer 0" in text
    assert "of the model, outputs differ by " in text
    assert "odd: left as " in text
    algorithm = fused_lstm.explain(fused_lstm.LSTMCell(12, 5), X[0].new_zeros(3, 12))
    assert algorithm.splitlines()[1].split(": ")[1] in text


def test_the_fallback_is_named(fallback):
    assert "every layer: plain PyTorch: the test says so" in str(profile(nn.LSTM(4, 6), X))


def test_models_without_lstms_are_refused():
    with pytest.raises(ValueError, match=r"has no torch\.nn\.LSTM or LSTMCell that can be swapped"):
        profile(nn.Linear(4, 4), X)

    class Unused(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.lstm = nn.LSTM(4, 4)

    with pytest.raises(ValueError, match="these inputs reach no LSTM of the model"):
        profile(Unused(), X)


def test_outputs_that_are_no_floating_point():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 6)

        def forward(self, x):
            return self.lstm(x)[0].argmax(-1)

    found = profile(Classifier(), X)
    assert found.difference is None
    assert found.lstms[0].difference < 1e-5
    model, lstm = str(found).splitlines()[:3:2]
    assert "no outputs of floating point to compare" in model
    assert "outputs differ by " in lstm


@pytest.mark.parametrize("option", ["lengths", "reset", "return_cells"])
def test_options_that_nn_lstm_does_not_take(option):
    """There is nothing to compare a model with that needs them, also where they are None."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Module()
            self.inner.lstm = fused_lstm.LSTM(4, 6)

        def forward(self, x):
            return self.inner.lstm(x, **{option: None})[0]

    model = Padded()
    words = rf"calls inner\.lstm with {option}, .* torch\.nn\.LSTM does not take: .* without"
    with pytest.raises(ValueError, match=words):
        profile(model, X)
    assert type(model.inner.lstm) is fused_lstm.LSTM


@pytest.mark.parametrize("method", ["step", "stream"])
def test_methods_that_nn_lstm_has_not(method):
    class Stepping(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = fused_lstm.LSTM(4, 6)

        def forward(self, x):
            made = getattr(self.lstm, method)
            return made(x, None)[0] if method == "step" else made(len(x))(x)

    model = Stepping()
    with pytest.raises(ValueError, match=rf"calls lstm by \.{method}, which torch.nn.LSTM has not"):
        profile(model, X[0])
    assert type(model.lstm) is fused_lstm.LSTM


def test_errors_of_the_model_are_its_own():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 6)

        def forward(self, x):
            return self.lstm.missing

    with pytest.raises(AttributeError, match="missing"):
        profile(Broken(), X)


def write_module(folder):
    (folder / "mine.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.LSTM(4, 6), torch.randn(7, 3, 4)\n"
        "def other():\n"
        "    return 3\n"
        "def without():\n"
        "    return torch.nn.Linear(4, 4), torch.randn(7, 4)\n"
        "def asks(size):\n"
        "    return torch.nn.LSTM(size, 6), torch.randn(7, 3, size)\n"
        "number = 3\n"
    )


def test_from_the_command_line(tmp_path):
    write_module(tmp_path)
    run = subprocess.run(
        [sys.executable, "-m", "fused_lstm", "profile", "mine:make", "--rounds", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("the model, forward, ")
    assert "the model itself: input [7, 3, 4], 1 call" in run.stdout


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mine", "expected module:function, got 'mine'"),
        (":make", "expected module:function, got ':make'"),
        (".mine:make", "expected module:function, got '.mine:make'"),
        ("mine:make:more", "expected module:function, got 'mine:make:more'"),
        ("mine:number", "expected mine:number to be a function, got int"),
        ("mine:asks", "expected mine:asks to take nothing, got one that lacks arguments: missing"),
        ("nowhere_at_all:make", "No module named 'nowhere_at_all'"),
        ("mine:nothing", "has no attribute 'nothing'"),
        ("mine:other", "has to return (model, example_inputs), got int"),
    ],
)
def test_targets_that_are_none(tmp_path, monkeypatch, capsys, target, said):
    write_module(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(SystemExit) as error:
        _profile.main([target])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_help_is_plain_text(capsys):
    with pytest.raises(SystemExit) as error:
        _profile.main(["--help"])
    assert error.value.code == 0
    said = capsys.readouterr().out
    assert "before and after replace_lstm" in " ".join(said.split())
    assert "`" not in said


@pytest.mark.parametrize("rounds", [0, -3])
def test_no_rounds_are_refused(tmp_path, monkeypatch, capsys, rounds):
    words = f"expected at least 1 round, got {rounds}"
    with pytest.raises(ValueError, match=words):
        fused_lstm.profile(nn.LSTM(4, 6), X, rounds=rounds)
    write_module(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert _profile.main(["mine:make", "--rounds", str(rounds)]) == 1
    assert words in capsys.readouterr().err


def test_a_target_without_lstms(tmp_path, monkeypatch, capsys):
    write_module(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert _profile.main(["mine:without"]) == 1
    assert "has no torch.nn.LSTM" in capsys.readouterr().err
