"""Lengths, resets, cells and recompute in compiled and exported programs."""

import pytest
import torch
from cases import Case
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import fused_lstm

CASE = Case(T=5, B=4, I=3, H=6, layers=2, bidirectional=True, P=2)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def masks(T):
    generator = torch.Generator().manual_seed(T)
    lengths = torch.randint(0, T + 1, (4,), generator=generator)
    return dict(lengths=lengths, reset=torch.rand(T, 4, generator=generator) < 0.3)


def tensors_of(results):
    output, state, *more = results
    return [output, *state, *more]


def outputs_and_gradients(run, module, x, **options):
    outputs = tensors_of(run(x, **options))
    loss = sum(t.sin().sum() for t in outputs if t.requires_grad)
    return outputs, torch.autograd.grad(loss, [x, *module.parameters()])


@pytest.mark.parametrize("name", ["masks", "cells", "recompute"])
def test_forward_and_backward_without_a_graph_break(extension, name):
    _, module = CASE.modules()
    module.recompute = 2 if name == "recompute" else 0
    options = dict(masks=masks(5), cells=dict(return_cells=True, return_gates=True)).get(name, {})
    x = torch.randn(5, 4, 3, requires_grad=True)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    found = outputs_and_gradients(compiled, module, x, **options)
    expected = outputs_and_gradients(module, module, x, **options)
    if name == "cells":  # gates carry no gradient, compiled or not
        assert not found[0][-1].requires_grad
    torch.testing.assert_close(found, expected)


def test_all_lengths_are_one_more_compilation(extension):
    _, module = CASE.modules()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter)
    for steps in (5, 9, 6, 12, 7):
        x = torch.randn(steps, 4, 3)
        found = compiled(x, **masks(steps))
        torch.testing.assert_close(tensors_of(found), tensors_of(module(x, **masks(steps))))
    assert counter.frame_count == 2


class Masked(nn.Module):
    """Masks by position, as programs take them."""

    def __init__(self, layer: fused_lstm.LSTM) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, lengths, reset):
        return self.layer(x, lengths=lengths, reset=reset)


@pytest.mark.parametrize("strict", [False, True])
def test_export(extension, strict):
    _, layer = CASE.modules()
    module = Masked(layer)
    steps, batch = (torch.export.Dim(name, min=2, max=1000) for name in ("steps", "batch"))
    shapes = ({0: steps, 1: batch}, {0: batch}, {0: steps, 1: batch})
    with torch.no_grad():
        program = torch.export.export(
            module, (torch.randn(5, 4, 3), *masks(5).values()), dynamic_shapes=shapes, strict=strict
        )
        x = torch.randn(9, 7, 3)
        given = (x, torch.tensor([3, 9, 0, 1, 5, 6, 7]), torch.rand(9, 7) < 0.2)
        torch.testing.assert_close(program.module()(*given), module(*given))


class Cells(Masked):
    """That asks for c of every step too."""

    def forward(self, x, lengths, reset):
        y, state, cells = self.layer(x, lengths=lengths, reset=reset, return_cells=True)
        return y, state, cells


@pytest.mark.parametrize("kind", [Masked, Cells])
def test_an_exported_program_drops_no_tangent(extension, kind):
    _, layer = CASE.with_(dtype=torch.float64).modules()
    given = (torch.randn(5, 4, 3, dtype=torch.float64), *masks(5).values())
    with torch.no_grad():
        program = torch.export.export(kind(layer), given).module()
    found = []
    for run in (program, kind(layer)):
        with torch.autograd.forward_ad.dual_level():
            x = torch.autograd.forward_ad.make_dual(given[0], given[0].cos())
            outputs = tensors_of(run(x, *given[1:]))
            found.append([torch.autograd.forward_ad.unpack_dual(t).tangent for t in outputs])

        def loss(x, run=run):
            return sum(t.sin().sum() for t in tensors_of(run(x, *given[1:])))

        found[-1] += torch.func.jvp(loss, given[:1], given[:1])
        found[-1].append(torch.func.grad(loss)(given[0]))
    assert all(tangent is not None for tangent in found[0])
    torch.testing.assert_close(*found)


def test_fx(extension):
    """A leaf, as without the options."""
    traced = torch.fx.symbolic_trace(Masked(fused_lstm.LSTM(3, 6)))
    assert [n.op for n in traced.graph.nodes].count("call_module") == 1
    given = (torch.randn(5, 4, 3), *masks(5).values())
    torch.testing.assert_close(traced(*given), traced.layer(*given[:1], **masks(5)))


def test_shapes_on_meta(extension):
    layer = fused_lstm.LSTM(3, 6, bidirectional=True, device="meta")
    x = torch.empty(5, 4, 3, device="meta")
    results = layer(x, lengths=torch.empty(4, dtype=torch.long, device="meta"), return_cells=True)
    shapes = [tuple(t.shape) for t in tensors_of(results)]
    assert shapes == [(5, 4, 12), (2, 4, 6), (2, 4, 6), (5, 4, 12)]
