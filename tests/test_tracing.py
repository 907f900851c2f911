"""torch.fx and torch.jit: what works for nn.LSTM works, and the rest says what to do instead."""

import copy
import io

import pytest
import torch
from cases import Case
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

import fused_lstm


class Model(nn.Module):
    def __init__(self, lstm=fused_lstm.LSTM, cell=fused_lstm.LSTMCell):
        super().__init__()
        self.lstm = lstm(4, 6, 2, bidirectional=True, proj_size=2)
        self.cell = cell(4, 3)

    def forward(self, x):
        y, (h_n, _) = self.lstm(x)
        h, _ = self.cell(y[-1])
        return h, h_n


@pytest.fixture
def x():
    return torch.randn(5, 3, 4)


def test_fx_takes_the_layers_whole(backend, x):
    model = Model()
    graph = torch.fx.symbolic_trace(model)
    modules = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert modules == ["lstm", "cell"]
    torch.testing.assert_close(graph(x), model(x))
    theirs = torch.fx.symbolic_trace(Model(nn.LSTM, nn.LSTMCell))
    for ours, plain in zip(graph.graph.nodes, theirs.graph.nodes, strict=True):
        assert (ours.op, ours.kwargs) == (plain.op, plain.kwargs)


def test_fx_records_the_options_as_they_are_given(x):
    class Asking(Model):
        def forward(self, x):
            return self.lstm(x, lengths=None, return_cells=True, return_gates=False)

    model = Asking()
    graph = torch.fx.symbolic_trace(model)
    (call,) = [node for node in graph.graph.nodes if node.op == "call_module"]
    assert call.kwargs == {"lengths": None, "return_cells": True, "return_gates": False}
    torch.testing.assert_close(graph(x), model(x))


def test_fx_with_a_state(x):
    class Stepped(Model):
        def forward(self, x, h0, c0):
            return self.lstm(x, (h0, c0))

    model = Stepped()
    arguments = x, torch.randn(4, 3, 2), torch.randn(4, 3, 6)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(*arguments), model(*arguments))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "hook", ["forward", "pre", "both", "prune", "weight_norm", "spectral_norm"]
)
def test_fx_calls_hooks_once(x, hook):
    """They stay around the layer, and are no part of the graph."""
    model = Model()
    hooked = [(model.lstm, "weight_hh_l0"), (model.cell, "weight_hh")]
    for module, name in hooked:
        if hook in ("forward", "both"):
            module.register_forward_hook(lambda m, a, out: (out[0] * 2, out[1]))
        if hook in ("pre", "both"):
            module.register_forward_pre_hook(lambda m, args: (args[0] * 3, *args[1:]))
        if hook == "prune":
            prune.l1_unstructured(module, name, 0.5)
        if hook.endswith("_norm"):
            getattr(torch.nn.utils, hook)(module.eval(), name)
    expected = model(x)
    graph = torch.fx.symbolic_trace(model)
    assert [n.op for n in graph.graph.nodes].count("call_module") == 2
    assert all(isinstance(getattr(module, name), torch.Tensor) for module, name in hooked)
    torch.testing.assert_close(graph(x), expected)


def test_fx_where_only_the_state_is_traced():
    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = fused_lstm.LSTM(4, 6, 2)
            self.register_buffer("go", torch.ones(1, 3, 4))

        def forward(self, h, c):
            return self.lstm(self.go, hx=(h, c), return_cells=True)[2]

    model, state = Generator(), torch.randn(2, 2, 3, 6).unbind()
    graph = torch.fx.symbolic_trace(model)
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["lstm"]
    torch.testing.assert_close(graph(*state), model(*state))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("record", [False, True])
def test_jit_trace(backend, x, record):
    """The traced model runs other lengths, has gradients, and can be saved, loaded and frozen."""
    model = Model()
    with torch.set_grad_enabled(record):
        traced = torch.jit.trace(model, (x,))
    longer = torch.randn(9, 3, 4, requires_grad=True)
    torch.testing.assert_close(traced(longer), model(longer))
    found, expected = (
        torch.autograd.grad(m(longer)[0].sin().sum(), [longer, *model.lstm.parameters()])
        for m in (traced, model)
    )
    torch.testing.assert_close(found, expected)
    stream = io.BytesIO()
    torch.jit.save(traced, stream)
    stream.seek(0)
    loaded = torch.jit.load(stream)
    torch.testing.assert_close(loaded(longer), model(longer))
    torch.testing.assert_close(torch.jit.freeze(loaded.eval())(longer), model(longer))


@pytest.mark.filterwarnings("ignore")
def test_jit_script_says_what_to_do_instead(x):
    model = Model()
    with pytest.raises(RuntimeError, match=r"fused_lstm\.restore_lstm\(model\)"):
        torch.jit.script(model)
    with pytest.raises(
        RuntimeError, match=r"torch\.jit\.script cannot compile fused_lstm\.LSTMCell"
    ):
        torch.jit.script(model.cell)
    restored = fused_lstm.restore_lstm(copy.deepcopy(model), say=None)
    torch.testing.assert_close(torch.jit.script(restored)(x), model(x))


@pytest.mark.parametrize("what", ["forward", "grad", "vmap"])
def test_make_fx(extension, x, what):
    """A graph of ops can be run, and differentiated again."""
    _, ours = Case(layers=2).modules()
    function = {
        "forward": lambda x: ours(x)[0],
        "grad": torch.func.grad(lambda x: ours(x)[0].sin().sum()),
        "vmap": torch.func.vmap(lambda x: ours(x[:, None])[0], 1, 1),
    }[what]
    graph = make_fx(function)(x)
    assert "fused_lstm" in graph.code
    other = torch.randn(5, 3, 4, requires_grad=True)
    inputs = [other, *ours.parameters()]
    found, expected = graph(other), function(other)
    torch.testing.assert_close(found, expected)
    found, expected = (
        torch.autograd.grad(t.sin().sum(), inputs, materialize_grads=True)
        for t in (found, expected)
    )
    torch.testing.assert_close(found[0], expected[0])
