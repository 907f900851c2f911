"""The gradient of one layer: ``torch.autograd.Function`` over the fused ops, for every transform.

Plain autograd needs none of it but the second derivative: the op records a node of its own
(``csrc/autograd.cpp``), which costs a call of a small layer less than one in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fused_lstm import _onnx, _ops, _transforms, reference

# ``reverse`` of a layer of one direction, and of both.
FORWARD = [False]
BOTH = [False, True]


def lstm_layer(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    reverse: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, all its directions, by the fused op.

    Shapes are those of :func:`fused_lstm.reference.lstm_layer`. Differentiable in every tensor
    but ``batch_sizes``, any number of times and by every transform of ``torch.func``: the first
    derivative is the fused backward op, ``vmap`` has rules of its own (``batching.py``), and second
    derivatives and forward mode go through the reference.
    """
    if torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export():
        return _onnx.lstm_layer(x, batch_sizes, h0, c0, weights, reverse)
    return _ops.lstm(x, batch_sizes, h0, c0, weights, reverse)


def any_requires_grad(*tensors: Tensor | None) -> bool:
    """Whether a derivative in one of the tensors can be asked for."""
    return any(t is not None and t.requires_grad for t in tensors)


def apply(function: type[torch.autograd.Function], *args: Any) -> tuple[Tensor, ...]:
    """``function.apply(*args)`` at the level at hand, and without binding default arguments.

    That inspects the signature of ``forward`` in every call, which takes longer than a training
    step of a small layer.
    """
    if _transforms.func_active():
        return _transforms.apply_at_level(function, *args)
    return super(torch.autograd.Function, function).apply(*_transforms.unwrap_dead_wrappers(args))


class LSTMLayer(torch.autograd.Function):
    """``(x, batch_sizes, h0, c0, reverse, *weights) -> (y, h_n, c_n, gates, c)`` under a transform.

    ``gates`` and ``c`` are outputs only so that they can be saved (and seen by ``torch.func``);
    they carry no gradient.
    """

    @staticmethod
    def forward(
        x: Tensor,
        batch_sizes: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        reverse: Sequence[bool],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run the forward op, saving what its backward needs."""
        with _transforms.below_this_level():
            return tuple(_ops.lstm_layer(x, batch_sizes, h0, c0, weights, reverse, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Save by ``save_for_backward`` only: hooks and in-place checks then see every tensor."""
        x, batch_sizes, h0, c0, reverse, *weights = inputs
        y, _, _, gates, c = output
        ctx.mark_non_differentiable(gates, c)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, batch_sizes, h0, c0, y, gates, c, *weights)
        ctx.reverse = reverse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of what is asked for, and of nothing else."""
        grad_y, grad_h_n, grad_c_n = grads[:3]
        x, batch_sizes, h0, c0, y, gates, c, *weights = ctx.saved_tensors
        asked = ctx.needs_input_grad
        needs = [asked[0], asked[2], asked[3], *asked[5:]]
        if grad_y is None and grad_h_n is None and grad_c_n is None:
            return (None,) * len(asked)
        dx, dh0, dc0, *dweights = gradients_of_layer(
            grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0,
            weights, ctx.reverse, y, gates, c, needs,
        )  # fmt: skip
        return (dx, None, dh0, dc0, None, *dweights)


def gradients_of_layer(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    reverse: Sequence[bool],
    y: Tensor,
    gates: Tensor,
    c: Tensor,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Of x, h0, c0 and each weight; None where not needed.

    By the fused op, and by the reference where the op has no derivative for what is active.
    """
    if _transforms.any_legacy_batched(grad_y, grad_h_n, grad_c_n) or not _transforms.covered():
        found = iter(
            reference_gradients(
                grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0, reverse, needs, *weights
            )
        )
        return [next(found) if need else None for need in needs]
    found = _ops.lstm_layer_backward(
        grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0, weights, reverse, y, gates, c, needs
    )
    return [grad if need else None for grad, need in zip(found, needs, strict=True)]


def _backward_op(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    y: Tensor,
    gates: Tensor,
    c: Tensor,
    reverse: Sequence[bool],
    needs: Sequence[bool],
    *weights: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients that are needed, in the order of ``[x, h0, c0, *weights]``."""
    with _transforms.below_this_level():
        grads = _ops.lstm_layer_backward(
            grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0,
            weights, reverse, y, gates, c, needs,
        )  # fmt: skip
    return tuple(grad for grad, need in zip(grads, needs, strict=True) if need)


class LSTMLayerBackward(torch.autograd.Function):
    """The fused backward op as a function of ``(grad_y, grad_h_n, grad_c_n, x, h0, c0, *weights)``.

    Its own derivative goes through the reference, which PyTorch differentiates as often as asked.
    ``y``, ``gates`` and ``c`` only carry intermediate results from forward to backward: what they
    depend on is accounted for through ``x``, ``h0``, ``c0`` and the weights.
    """

    forward = staticmethod(_backward_op)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Save what the reference computes the same gradients from."""
        (grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0, _, _, _, reverse, needs, *weights) = (
            inputs
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0, *weights)
        ctx.reverse, ctx.needs = reverse, needs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Differentiate the reference's gradients in everything they depend on."""
        asked = ctx.needs_input_grad
        inputs, places = ctx.saved_tensors, [0, 1, 2, 3, 5, 6, *range(12, len(asked))]
        position = [0, 1, 2, 3, 5, 6, *range(7, len(inputs))]  # of the same in saved_tensors
        wanted = [(p, k) for p, k in zip(places, position, strict=True) if asked[p]]
        used = [k for k, grad in enumerate(grads) if grad is not None]
        if not used:
            return (None,) * len(asked)

        def first(*differentiated: Tensor) -> tuple[Tensor, ...]:
            args = list(inputs)
            for (_, k), t in zip(wanted, differentiated, strict=True):
                args[k] = t
            found = reference_gradients(*args[:7], ctx.reverse, ctx.needs, *args[7:])
            return tuple(found[k] for k in used)

        found = pull_back(first, [inputs[k] for _, k in wanted], [grads[k] for k in used])
        result: list[Tensor | None] = [None] * len(asked)
        for (p, _), grad in zip(wanted, found, strict=True):
            result[p] = grad
        return tuple(result)


def reference_gradients(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    reverse: Sequence[bool],
    needs: Sequence[bool],
    *weights: Tensor,
) -> Sequence[Tensor]:
    """The gradients that are needed, in operations that PyTorch can transform."""
    # What a transform saved that has ended meanwhile.
    unwrapped = _transforms.unwrap_dead_wrappers(
        (grad_y, grad_h_n, grad_c_n, batch_sizes, x, h0, c0, *weights)
    )
    grads, batch_sizes, inputs = unwrapped[:3], unwrapped[3], unwrapped[4:]

    def outputs(*differentiated: Tensor) -> tuple[Tensor, ...]:
        rest = iter(differentiated)
        x, h0, c0, *weights = (
            next(rest) if need else t for t, need in zip(inputs, needs, strict=True)
        )
        found = reference.lstm_layer(x, batch_sizes, h0, c0, weights, reverse)
        return tuple(t for t, grad in zip(found, grads, strict=True) if grad is not None)

    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    return pull_back(outputs, wanted, [grad for grad in grads if grad is not None])


def pull_back(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Gradients of ``function(*inputs)`` in all inputs; differentiable where grad mode is on."""
    if _transforms.func_active():
        return torch.func.vjp(function, *inputs)[1](tuple(grads))
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # A view of its own for each: one tensor may be passed twice (tied weights). It requires a
        # gradient also where the tensor comes from a transform of torch.func that has ended.
        inputs = [
            t.view_as(t) if t.requires_grad else t.view_as(t).requires_grad_() for t in inputs
        ]
        pairs = [
            (output, grad)
            for output, grad in zip(function(*inputs), grads, strict=True)
            if output.requires_grad
        ]
        if not pairs:
            return [torch.zeros_like(t) for t in inputs]
        outputs, grads = zip(*pairs, strict=True)
        return torch.autograd.grad(
            outputs, inputs, grads, create_graph=create_graph, materialize_grads=True
        )
