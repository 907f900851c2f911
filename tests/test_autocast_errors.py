"""Under autocast an error says what is wrong, and not that dtypes differ, which they may there."""

import pytest
import torch
from cases import complaint
from torch import nn

import fused_lstm
from fused_lstm import _ops

X = torch.randn(5, 3, 4).bfloat16()


@pytest.fixture(autouse=True)
def _autocast():
    with torch.autocast("cpu", torch.bfloat16):
        yield


def test_lengths_beyond_the_steps(extension):
    with pytest.raises(RuntimeError, match="from 0 to 5, the steps of the input, got 99 for row 0"):
        fused_lstm.LSTM(4, 6)(X, lengths=torch.tensor([99, 1, 1]))


@pytest.mark.parametrize("x", [X, X.float()], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("hx", [torch.float32, torch.bfloat16])
def test_errors_of_the_ops_keep_their_type_and_words(extension, monkeypatch, x, hx):
    """Memory that ran out, for one, is told from other errors by its type."""

    def no_memory(*args):
        raise torch.OutOfMemoryError("no memory left")

    for name in ("lstm", "lstm_cell"):
        monkeypatch.setattr(_ops, name, no_memory)
    for module, given, state in (
        (fused_lstm.LSTM(4, 6), x, torch.zeros(1, 3, 6, dtype=hx)),
        (fused_lstm.LSTMCell(4, 6), x[0], torch.zeros(3, 6, dtype=hx)),
    ):
        kind, text = complaint(lambda m=module, g=given, s=state: m(g, (s, s)))
        assert (kind, text) == (torch.OutOfMemoryError, "no memory left")


def test_strict_says_why(monkeypatch):
    monkeypatch.setattr(_ops, "unavailable", lambda device, dtype: "the test says so")
    monkeypatch.setenv("FUSED_LSTM_STRICT", "1")
    for module, x in ((fused_lstm.LSTM(4, 6), X), (fused_lstm.LSTMCell(4, 6), X[0])):
        with pytest.raises(RuntimeError, match=r"the test says so \(FUSED_LSTM_STRICT=1"):
            module(x)


def test_shapes_are_refused_in_the_words_of_nn_lstm(backend):
    theirs, ours = nn.LSTM(4, 6), fused_lstm.LSTM(4, 6)
    for call in (
        lambda m: m(torch.randn(5, 3, 7).bfloat16()),
        lambda m: m(X, (torch.zeros(1, 2, 6), torch.zeros(1, 3, 6))),
    ):
        assert complaint(lambda c=call: c(ours)) == complaint(lambda c=call: c(theirs))


def test_float64_that_autocast_leaves_alone_is_still_refused(backend):
    with pytest.raises(RuntimeError, match=r"Double|float64"):
        fused_lstm.LSTM(4, 6)(X.double())
