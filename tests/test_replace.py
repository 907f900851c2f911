"""replace_lstm and restore_lstm: all but the class stays, and every module is accounted for."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fused_lstm


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.encoder = nn.ModuleList([nn.LSTM(4, 6, bidirectional=True), nn.GRU(12, 5)])
        self.shared = self.encoder[0]
        self.cell = nn.LSTMCell(5, 3)

    def forward(self, tokens):
        y, _ = self.encoder[0](self.embed(tokens))
        y, _ = self.encoder[1](y)
        return self.cell(y[-1])[0]


@pytest.fixture
def model():
    return Tagger()


TOKENS = torch.arange(12).view(4, 3) % 10


def test_every_lstm_is_swapped_and_reported(model):
    said = []
    expected = model(TOKENS)
    assert fused_lstm.replace_lstm(model, say=said.append) is model
    assert type(model.encoder[0]) is fused_lstm.LSTM
    assert type(model.encoder[1]) is nn.GRU
    assert type(model.cell) is fused_lstm.LSTMCell
    assert said == [
        "encoder.0: torch.nn.modules.rnn.LSTM -> fused_lstm.module.LSTM",
        "cell: torch.nn.modules.rnn.LSTMCell -> fused_lstm.cell.LSTMCell",
        "torch.ao.quantization will not see these: quantize first, or restore_lstm() before it",
    ]
    torch.testing.assert_close(model(TOKENS), expected)


def test_it_speaks_unless_told_not_to(model, capsys):
    fused_lstm.replace_lstm(model)
    assert "encoder.0" in capsys.readouterr().out
    fused_lstm.restore_lstm(model, say=None)
    assert not capsys.readouterr().out


def test_a_shared_module_stays_shared(model):
    fused_lstm.replace_lstm(model, say=None)
    assert model.shared is model.encoder[0]


def test_the_round_trip_is_exact(model):
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    parameters = [id(p) for p in model.parameters()]
    expected = model(TOKENS)
    fused_lstm.replace_lstm(model, say=None)
    assert [id(p) for p in model.parameters()] == parameters
    assert list(model.state_dict()) == list(before)
    fused_lstm.restore_lstm(model, say=None)
    assert [type(m) for m in model.modules()] == kinds
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(model(TOKENS), expected, rtol=0, atol=0)


def test_an_optimizer_stays_valid(model):
    """It was made before the swap, and still moves the weights that the model uses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fused_lstm.replace_lstm(model, say=None)
    before = model(TOKENS)
    before.sum().backward()
    optimizer.step()
    assert (model(TOKENS) - before).abs().max() > 1e-3


def test_hooks_and_training_mode_stay(model):
    calls = []
    model.encoder[0].register_forward_hook(lambda *args: calls.append(1))
    model.eval()
    model.encoder[0].custom = "kept"
    fused_lstm.replace_lstm(model, say=None)
    model(TOKENS)
    assert calls == [1]
    assert not model.encoder[0].training
    assert model.encoder[0].custom == "kept"


@pytest.mark.parametrize(
    ("plain", "fused"),
    [(nn.LSTM(4, 6), fused_lstm.LSTM), (nn.LSTMCell(4, 6), fused_lstm.LSTMCell)],
)
def test_the_model_itself_may_be_an_lstm(plain, fused):
    said = []
    model = fused_lstm.replace_lstm(plain, say=said.append)
    assert type(model) is fused
    assert said[0].startswith("the model itself: ")
    model(torch.randn(3, 4))
    assert type(fused_lstm.restore_lstm(model, say=None)).__module__.startswith("torch.")


class Subclass(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(input * 2, hx)


def test_subclasses_and_replaced_forwards_are_left_and_reported():
    patched = nn.LSTM(4, 6)
    patched.forward = lambda x: x
    model = nn.ModuleDict({"sub": Subclass(4, 6), "patched": patched})
    said = []
    fused_lstm.replace_lstm(model, say=said.append)
    assert type(model["sub"]) is Subclass
    assert type(model["patched"]) is nn.LSTM
    assert len(said) == 2
    assert all("left as" in line for line in said)
    assert "its forward was replaced" in said[1]


def test_parametrized_modules(backend):
    model = nn.Sequential(nn.LSTM(4, 6))
    parametrizations.weight_norm(model[0], "weight_hh_l0")
    x = torch.randn(5, 3, 4)
    expected = model(x)
    fused_lstm.replace_lstm(model, say=None)
    assert isinstance(model[0], fused_lstm.LSTM)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    fused_lstm.restore_lstm(model, say=None)
    assert isinstance(model[0], nn.LSTM)
    torch.testing.assert_close(model(x), expected)


def test_a_swapped_model_can_be_pickled_and_moved(model):
    fused_lstm.replace_lstm(model, say=None)
    other = pickle.loads(pickle.dumps(model))
    assert type(other.cell) is fused_lstm.LSTMCell
    torch.testing.assert_close(other(TOKENS), model(TOKENS))
    model.double()
    torch.testing.assert_close(model(TOKENS).float(), other(TOKENS))


def test_twice_is_once(model):
    fused_lstm.replace_lstm(model, say=None)
    said = []
    fused_lstm.replace_lstm(model, say=said.append)
    assert said == []


@pytest.mark.filterwarnings("ignore")
def test_quantization_comes_first(model):
    """Quantized modules stay as they are, the rest is swapped; the other way round is announced."""
    quantization = pytest.importorskip("torch.ao.quantization")
    quantized = quantization.quantize_dynamic(model, {nn.LSTMCell}, dtype=torch.qint8)
    kind = type(quantized.cell)
    assert kind.__module__.startswith("torch.ao.nn.quantized")
    expected = quantized(TOKENS)
    fused_lstm.replace_lstm(quantized, say=None)
    assert type(quantized.cell) is kind
    assert type(quantized.encoder[0]) is fused_lstm.LSTM
    torch.testing.assert_close(quantized(TOKENS), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_module_prepared_for_quantization_is_left_and_reported(model):
    quantization = pytest.importorskip("torch.ao.quantization")
    quantization.propagate_qconfig_(model, {nn.LSTM: quantization.default_dynamic_qconfig})
    said = []
    fused_lstm.replace_lstm(model, say=said.append)
    assert type(model.encoder[0]) is nn.LSTM
    assert "encoder.0: left as" in said[0]
    assert "prepared for quantization" in said[0]


@pytest.mark.filterwarnings("ignore")
def test_a_module_prepared_for_quantization_is_restored(model):
    """Quantization looks for PyTorch's own class, so nothing keeps that from coming back."""
    quantization = pytest.importorskip("torch.ao.quantization")
    fused_lstm.replace_lstm(model, say=None)
    config = {fused_lstm.LSTM: quantization.default_dynamic_qconfig}
    quantization.propagate_qconfig_(model, config)
    assert model.encoder[0].qconfig is not None
    fused_lstm.restore_lstm(model, say=None)
    assert type(model.encoder[0]) is nn.LSTM
