"""How backward behaves for lengths, resets, cells and recompute: what it saves, and who asks."""

from contextlib import nullcontext

import pytest
import torch
from cases import Case, leaves
from test_sequences import LENGTHS, MASK
from test_transforms_ops import Ops
from torch._dynamo import compiled_autograd

CASE = Case(T=5, B=4, I=3, H=6, P=2, bidirectional=True, dtype=torch.float64)
OPTIONS = {
    "lengths and resets": dict(lengths=LENGTHS, reset=MASK),
    "cells": dict(lengths=LENGTHS, reset=MASK, return_cells=True),
    "recompute": {},
}


class Problem:
    """A call with everything that it can be differentiated in, by name."""

    def __init__(self, name):
        torch.manual_seed(0)
        _, self.module = CASE.modules()
        self.module.recompute = 2 if name == "recompute" else 0
        self.options = OPTIONS[name]
        x = torch.randn(5, 4, 3, dtype=CASE.dtype)
        states = [*CASE.state(), *CASE.state()] if "reset" in self.options else CASE.state()
        values = leaves([x, *states])
        self.inputs = dict(zip(["x", "h0", "c0", "reset_h", "reset_c"], values, strict=False))
        self.inputs.update(self.module.named_parameters())

    def outputs(self):
        x, h0, c0, *reset_hx = [t for name, t in self.inputs.items() if "_l0" not in name]
        options = dict(self.options, reset_hx=reset_hx) if reset_hx else self.options
        y, state, *cells = self.module(x, (h0, c0), **options)
        return y, *state, *cells

    def loss(self):
        return sum(t.sin().sum() for t in self.outputs())

    def gradients(self, names=None, **options):
        inputs = [self.inputs[name] for name in names or self.inputs]
        return torch.autograd.grad(self.loss(), inputs, **options)


@pytest.fixture(params=OPTIONS)
def problem(request, extension):
    return Problem(request.param)


def test_it_is_one_forward_and_one_backward_of_the_node_in_c(problem):
    with Ops() as ops:
        outputs = problem.outputs()
        sum(t.sum() for t in outputs).backward()
    assert [name for name, _ in ops.calls] == ["lstm_sequence", "lstm_sequence_backward"]
    assert "LayerFunction" in outputs[0].grad_fn.name()


def test_each_gradient_alone_is_that_of_all_together(problem):
    together = dict(zip(problem.inputs, problem.gradients(), strict=True))
    for name, tensor in problem.inputs.items():
        for other in problem.inputs.values():
            other.requires_grad_(other is tensor)
        (alone,) = problem.gradients([name])
        assert torch.equal(alone, together[name]), name
        assert alone.abs().max() > 0, name


def test_each_output_alone_is_a_part_of_all_together(problem):
    inputs = list(problem.inputs.values())
    parts = [
        torch.autograd.grad(t.sin().sum(), inputs, retain_graph=True, materialize_grads=True)
        for t in problem.outputs()
    ]
    total = [sum(of_one) for of_one in zip(*parts, strict=True)]
    torch.testing.assert_close(total, [*problem.gradients()])


def test_backward_twice_gives_the_same(problem):
    loss, inputs = problem.loss(), list(problem.inputs.values())
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, inputs)


def test_create_graph_gives_the_same_first_derivative(problem):
    recorded = problem.gradients(create_graph=True)
    assert all(grad.requires_grad for grad in recorded)
    torch.testing.assert_close(recorded, problem.gradients())


@pytest.mark.parametrize("keeper", ["hooks", "save_on_cpu"])
def test_saved_tensors_may_be_replaced(problem, keeper):
    expected = problem.gradients()
    replaced = []

    def pack(t):
        replaced.append(t)
        return t.clone()

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with hooks if keeper == "hooks" else torch.autograd.graph.save_on_cpu():
        loss = problem.loss()
    found = torch.autograd.grad(loss, list(problem.inputs.values()))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    if keeper == "hooks":
        for tensor in problem.inputs.values():
            assert any(t is tensor or t.data_ptr() == tensor.data_ptr() for t in replaced)


@pytest.mark.parametrize("what", ["x", "h0", "weight_hr_l0", "lengths", "reset", "output"])
def test_changing_a_saved_tensor_in_place_is_noticed(extension, what):
    problem = Problem("cells")
    problem.options = {
        k: v.clone() if k != "return_cells" else v for k, v in OPTIONS["cells"].items()
    }
    outputs = problem.outputs()
    loss = sum(t.sum() for t in outputs)
    named = dict(problem.inputs, **problem.options, output=outputs[0])
    with torch.no_grad():
        named[what].copy_(named[what].clone())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_output_without_a_gradient(problem):
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    Stop.apply(problem.outputs()[0]).sum().backward()
    assert all(t.grad is None for t in problem.inputs.values())


def test_gradients_that_are_mapped_over(problem):
    """Of all outputs together, and into each alone."""
    outputs, inputs = problem.outputs(), list(problem.inputs.values())
    for chosen in (outputs, *((t,) for t in outputs)):
        upstream = [torch.randn(3, *t.shape, dtype=t.dtype) for t in chosen]
        options = dict(retain_graph=True, materialize_grads=True)
        mapped = torch.autograd.grad(chosen, inputs, upstream, is_grads_batched=True, **options)
        for k in range(3):
            one = torch.autograd.grad(chosen, inputs, [u[k] for u in upstream], **options)
            torch.testing.assert_close([m[k] for m in mapped], [*one])


def test_gradients_by_vmap_of_a_graph_recorded_before(problem):
    outputs, inputs = problem.outputs(), list(problem.inputs.values())
    upstream = torch.randn(3, *outputs[0].shape, dtype=CASE.dtype)

    def pull_back(upstream):
        return torch.autograd.grad(outputs[0], inputs, upstream, retain_graph=True)

    mapped = torch.func.vmap(pull_back)(upstream)
    for k in range(3):
        torch.testing.assert_close([m[k] for m in mapped], [*pull_back(upstream[k])])


@pytest.mark.slow
def test_compiled_autograd(problem):
    torch._dynamo.reset()
    found = []
    for context in (nullcontext(), compiled_autograd._enable(torch.compile(backend="aot_eager"))):
        for tensor in problem.inputs.values():
            tensor.grad = None
        loss = problem.loss()
        with context:
            loss.backward()
        found.append([tensor.grad for tensor in problem.inputs.values()])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("keep_every", [0, 2])
def test_what_the_op_says_of_what_it_saved(extension, save, keep_every):
    problem = Problem("cells")
    x, weights = problem.inputs["x"], problem.module._flat_weights
    y, _, _, gates, c = torch.ops.fused_lstm.lstm_sequence(
        x, None, None, None, weights, [False, True],
        LENGTHS, None, None, None, save, keep_every, False,
    )  # fmt: skip
    assert gates.shape == ((2, 20, 24) if save and not keep_every else (0,))
    assert c.shape == ((2, 20, 6) if save else (0,))
    (grad,) = torch.autograd.grad(y.sin().sum(), x)
    (expected,) = torch.autograd.grad(problem.module(x, lengths=LENGTHS)[0].sin().sum(), x)
    assert torch.equal(grad, expected)


def test_the_backward_op_by_itself_drops_no_derivative(extension):
    problem = Problem("cells")
    x, weights = problem.inputs["x"], problem.module._flat_weights
    masks = (LENGTHS, MASK, None, None)
    with torch.no_grad():
        y, _, _, gates, c = torch.ops.fused_lstm.lstm_sequence(
            x, None, None, None, weights, [False, True], *masks, True, 0, False
        )
    needs = [True, False, False, *[True] * len(weights), False, False]

    def gradients(upstream):
        return torch.ops.fused_lstm.lstm_sequence_backward(
            upstream, None, None, None, x, None, None, None, weights, [False, True], *masks,
            y, gates, c, needs, 0, False,
        )  # fmt: skip

    upstream = torch.randn_like(y).requires_grad_()
    with torch.no_grad():
        fused = gradients(upstream)
    recorded = gradients(upstream)
    torch.testing.assert_close(recorded, fused)
    # It is linear in what comes from above: the derivative along it is the gradient itself.
    (slope,) = torch.autograd.grad((recorded[0] * x.detach()).sum(), upstream)
    torch.testing.assert_close((slope * upstream).sum(), (fused[0] * x.detach()).sum())
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(lambda u: gradients(u)[0], (upstream.detach(),), (upstream.detach(),))


BAD = {
    "reset_h": (8, torch.zeros(2, 4, 3).double(), r"expected reset_h of shape \[2, 4, 2\]"),
    "reset_c": (9, torch.zeros(2, 3, 6).double(), r"expected reset_c of shape \[2, 4, 6\]"),
    "its dtype": (9, torch.zeros(2, 4, 6), r"expected reset_c of dtype Double, got Float"),
}


@pytest.mark.parametrize("name", BAD)
def test_states_for_resets_that_do_not_fit_are_refused_by_the_op(extension, name):
    place, state, complaint = BAD[name]
    problem = Problem("cells")
    arguments = [problem.inputs["x"], None, None, None, problem.module._flat_weights, [False, True]]
    arguments += [LENGTHS, MASK, None, None, False, 0, False]
    arguments[place] = state
    with pytest.raises(RuntimeError, match=complaint):
        torch.ops.fused_lstm.lstm_sequence(*arguments)


def test_a_gradient_into_c_that_does_not_fit_is_refused_by_the_op(extension):
    problem = Problem("cells")
    call = (problem.inputs["x"], None, None, None, problem.module._flat_weights, [False, True])
    masks = (LENGTHS, MASK, None, None)
    with torch.no_grad():
        y, _, _, gates, c = torch.ops.fused_lstm.lstm_sequence(*call, *masks, True, 0, False)
        needs = [True] * (3 + len(call[4])) + [False, False]
        with pytest.raises(RuntimeError, match="expected grad_c of shape"):
            torch.ops.fused_lstm.lstm_sequence_backward(
                y, None, None, c[:, 1:], *call, *masks, y, gates, c, needs, 0, False
            )


@pytest.mark.parametrize("name", ["x", "h0", "c0", "weight_hh_l0", "reset_h", "reset_c"])
def test_the_op_by_itself_drops_no_tangent(extension, name):
    """Of whichever argument it is: those of the module, which asks for none of the ops then."""
    problem = Problem("lengths and resets")
    for tensor in problem.inputs.values():
        tensor.requires_grad_(False)
    named = dict(problem.inputs)
    with torch.autograd.forward_ad.dual_level():
        named[name] = torch.autograd.forward_ad.make_dual(named[name], named[name].cos())
        x, h0, c0, reset_h, reset_c = [t for key, t in named.items() if "_l0" not in key]
        weights = [t for key, t in named.items() if "_l0" in key]
        options = dict(problem.options, reset_hx=(reset_h, reset_c))
        y, state = torch.func.functional_call(
            problem.module, {k: named[k] for k in named if "_l0" in k}, (x, (h0, c0)), options
        )
        outputs = torch.ops.fused_lstm.lstm_sequence(
            x, None, h0, c0, weights, [False, True],
            LENGTHS, MASK, reset_h, reset_c, False, 0, False,
        )[:3]  # fmt: skip
        tangents = [
            [torch.autograd.forward_ad.unpack_dual(t).tangent for t in found]
            for found in ((y, *state), outputs)
        ]
    assert tangents[1][0].abs().max() > 0
    torch.testing.assert_close(tangents[1], tangents[0])
