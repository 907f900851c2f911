"""torch.compile takes the layer whole: no graph break, one op per layer, the same results."""

import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from cases import Case
from torch import nn
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fused_lstm
from fused_lstm import reference

CASES = {
    "one_layer": Case(),
    "all": Case(layers=2, bidirectional=True, P=2, batch_first=True),
    "packed": Case(kind="packed", layers=2, bidirectional=True),
}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def tensors_of(result) -> list[torch.Tensor]:
    y, (h_n, c_n) = result
    return [y.data if isinstance(y, PackedSequence) else y, h_n, c_n]


def outputs_and_gradients(module, parameters, given):
    outputs = tensors_of(module(given))
    loss = sum(t.float().sin().sum() for t in outputs)
    return outputs, torch.autograd.grad(loss, list(parameters))


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_without_a_graph_break(extension, device, name):
    case = CASES[name].with_(device=device)
    _, ours = case.modules()
    given = case.pack(case.sequences())
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    found, expected = (outputs_and_gradients(m, ours.parameters(), given) for m in (compiled, ours))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CASES)
def test_one_more_length_is_one_compilation_and_all_others_none(extension, name):
    """The first graph is for its very length, the second for every length."""
    case = CASES[name]
    _, ours = case.modules()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, backend=counter)
    for steps in (5, 9, 6, 12, 7):
        given = case.with_(T=steps).pack(case.with_(T=steps).sequences())
        torch.testing.assert_close(tensors_of(compiled(given)), tensors_of(ours(given)))
    assert counter.frame_count == 2


FIRST_OF_A_PROCESS = """
import torch, fused_lstm
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend
counter = CompileCounterWithBackend("aot_eager")
module, x = fused_lstm.LSTM(5, 6), torch.randn(3, 2, 5)
compiled = torch.compile(module, backend=counter)
compiled(x)
fused_lstm.LSTM(5, 6)(x)
fused_lstm.LSTM(5, 6).double()(x.double())
compiled(x)
print(counter.frame_count)
"""


def test_what_other_calls_learn_compiles_nothing_again(extension):
    found = subprocess.run(
        [sys.executable, "-c", FIRST_OF_A_PROCESS], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "1"


def test_packed_input_that_came_sorted(extension):
    """The batch is in no shape then: one graph where such shapes are allowed, else one break."""
    _, ours = Case().modules()
    packed = pack_sequence([torch.randn(n, 4) for n in (5, 3, 2)])
    expected = ours(packed)
    for whole in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=whole)
        torch.testing.assert_close(tensors_of(compiled(packed)), tensors_of(expected))
        tensors_of(compiled(packed))[0].sum().backward()


def test_a_cell(extension):
    cell = fused_lstm.LSTMCell(4, 6)
    compiled = torch.compile(cell, backend="aot_eager", fullgraph=True)
    x, hx = torch.randn(3, 4), (torch.randn(3, 6), torch.randn(3, 6))
    torch.testing.assert_close(compiled(x, hx), cell(x, hx))
    torch.testing.assert_close(compiled(x[0]), cell(x[0]))


@pytest.mark.parametrize("inside", [False, True])
def test_autocast(extension, inside):
    _, ours = Case(layers=2).modules()
    x = torch.randn(5, 3, 4)

    def autocast(x):
        with torch.autocast("cpu", torch.bfloat16):
            return ours(x)

    if inside:
        compiled = torch.compile(autocast, backend="aot_eager", fullgraph=True)
        found = compiled(x)
    else:
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
        with torch.autocast("cpu", torch.bfloat16):
            found = compiled(x)
    expected = autocast(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert tensors_of(found)[0].dtype == torch.bfloat16
    tensors_of(found)[0].float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())


def test_inference_saves_nothing(extension):
    _, ours = Case(layers=2).modules()
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with torch.no_grad():
        torch.compile(ours, backend=backend, fullgraph=True)(torch.randn(5, 3, 4))
    assert seen.count("fused_lstm.lstm.default") == 2
    assert not any("lstm_layer" in target for target in seen)


@pytest.mark.parametrize("what", ["vmap", "grad", "vmap of grad", "ensemble"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_transforms_inside(extension, what, dynamic):
    """torch.compile of a function that torch.func transforms."""
    _, ours = Case(dtype=torch.float64).modules()
    weights = {k: v.detach() for k, v in ours.named_parameters()}
    stacked = {k: torch.stack([v, v.cos()]) for k, v in weights.items()}
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)

    def fused(weights, x):
        return functional_call(ours, weights, (x,))[0].sin().sum()

    def plain(weights, x):
        y, _, _ = reference.lstm_layer(x, None, None, None, list(weights.values()), [False])
        return y.sin().sum()

    call = {
        "vmap": lambda f: vmap(f, (None, 0))(weights, x),
        "grad": lambda f: grad(f)(weights, x[0]),
        "vmap of grad": lambda f: vmap(grad(f), (None, 0))(weights, x),
        "ensemble": lambda f: vmap(grad(f))(stacked, x),
    }[what]
    compiled = torch.compile(
        lambda: call(fused), backend="aot_eager", fullgraph=True, dynamic=dynamic
    )
    torch.testing.assert_close(compiled(), call(plain))


def test_backward_through_an_ensemble(extension):
    """Plain autograd outside of a graph that maps over recorded weights."""
    _, ours = Case(dtype=torch.float64).modules()
    stacked = {k: torch.stack([v, v.cos()]).detach() for k, v in ours.named_parameters()}
    x = torch.randn(5, 3, 4, dtype=torch.float64)

    def losses(weights):
        return vmap(lambda w: functional_call(ours, w, (x,))[0].sin().sum())(weights)

    found = []
    for call in (torch.compile(losses, backend="aot_eager", fullgraph=True), losses):
        weights = {k: v.clone().requires_grad_() for k, v in stacked.items()}
        found.append(torch.autograd.grad(call(weights).sum(), list(weights.values())))
    torch.testing.assert_close(*found)


def test_a_gradient_inside_is_itself_differentiated(extension):
    """A loss on the gradient: what is inside the graph hides no derivative from what is outside."""
    theirs, ours = Case(dtype=torch.float64).modules()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    found = []
    for module, wrap in ((theirs, lambda f: f), (ours, lambda f: f), (ours, torch.compile)):
        inner = grad(lambda x, module=module: module(x)[0].sin().sum())
        if wrap is torch.compile:
            inner = torch.compile(inner, backend="aot_eager", fullgraph=True)
        loss = inner(x).sin().sum()
        found.append(torch.autograd.grad(loss, list(module.parameters()), materialize_grads=True))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 32)
        self.lstm = fused_lstm.LSTM(32, 64, 2, bidirectional=True)
        self.head = nn.Linear(128, 5)

    def forward(self, x):
        return self.head(self.lstm(self.embed(x).relu())[0]).log_softmax(-1)


@pytest.mark.parametrize("name", ["dense", "both directions", "packed", "projected", "changed"])
def test_compiled_autograd(extension, name):
    """An eager forward pass, whose backward pass is captured and compiled as a whole."""
    case = {
        "dense": Case(layers=2),
        "both directions": Case(layers=2, bidirectional=True),
        "packed": Case(kind="packed"),
        "projected": Case(P=2),
        "changed": Case(dtype=torch.float64),
    }[name]
    sequences = case.sequences()
    _, ours = case.modules()
    found = []
    for context in (nullcontext(), compiled_autograd._enable(torch.compile(backend="aot_eager"))):
        ours.zero_grad()
        with context:
            y, (h_n, _) = ours(case.pack(sequences))
            if name == "changed":
                y.mul_(2)
            (y.data if case.kind == "packed" else y).sin().sum().add(h_n.sum()).backward()
        found.append([p.grad for p in ours.parameters()])
    # An output that may change in place is computed again where that cannot be seen.
    exact = dict(rtol=0, atol=0) if name == "dense" else {}
    torch.testing.assert_close(found[1], found[0], **exact)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs"])
def test_inductor(extension, device, mode):
    """The first call of a model takes seconds, not minutes, whatever the number of steps."""
    model = Tagger().to(device)
    x = torch.randn(128, 4, 16, device=device)
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    begin = time.perf_counter()
    y = compiled(x)
    y.sum().backward()
    elapsed = time.perf_counter() - begin
    expected = model(x)
    torch.testing.assert_close(y, expected)
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected.sum().backward()
    for p, found in zip(model.parameters(), grads, strict=True):
        # Sums over all steps and rows, in another order: judged by the largest of their kind.
        torch.testing.assert_close(found, p.grad, rtol=0, atol=1e-5 * p.grad.abs().max().item())
    assert elapsed < 120, "the bar is 20 s on a quiet machine"
