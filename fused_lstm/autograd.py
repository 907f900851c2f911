"""The gradient of one layer: a ``torch.autograd.Function`` over the fused ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_lstm import _ops, reference


def lstm_layer(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    reverse: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, all its directions, by the fused op, or by the reference where it cannot run.

    Shapes are those of :func:`fused_lstm.reference.lstm_layer`. Differentiable in every tensor
    but ``batch_sizes``, any number of times: the first derivative is the fused backward op, the
    second and higher ones go through the reference.
    """
    reason = _ops.unavailable(x.device.type, x.dtype)
    if reason is not None:
        if not _ops.disabled():
            _ops.warn_fallback(reason)
        return reference.lstm_layer(x, batch_sizes, h0, c0, weights, reverse)
    if torch.is_grad_enabled() and any_requires_grad(x, h0, c0, *weights):
        return _apply(LSTMLayer, x, batch_sizes, h0, c0, reverse, *weights)[:3]
    return _ops.lstm_layer(x, batch_sizes, h0, c0, weights, reverse, False)[:3]


def any_requires_grad(*tensors: Tensor | None) -> bool:
    """Whether a derivative in one of the tensors can be asked for."""
    return any(t is not None and t.requires_grad for t in tensors)


def _apply(function: type[torch.autograd.Function], *args: Any) -> tuple[Tensor, ...]:
    """``function.apply(*args)``, in eager mode without its binding of default arguments.

    That inspects the signature of ``forward`` in every call, which takes longer than a training
    step of a small layer.
    """
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_dynamo_compiling():
        return function.apply(*args)
    args = torch._functorch.utils.unwrap_dead_wrappers(args)
    return super(torch.autograd.Function, function).apply(*args)


class LSTMLayer(torch.autograd.Function):
    """``(x, batch_sizes, h0, c0, reverse, *weights) -> (y, h_n, c_n, gates, c)``.

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
        # Only with create_graph=True does the backward itself run under grad mode.
        backward = LSTMLayerBackward.apply if torch.is_grad_enabled() else _backward_op
        found = iter(
            backward(
                grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0,
                y, gates, c, ctx.reverse, needs, *weights,
            )
        )  # fmt: skip
        dx, dh0, dc0, *dweights = (next(found) if need else None for need in needs)
        return (dx, None, dh0, dc0, None, *dweights)


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
        differentiated = [*asked[0:4], *asked[5:7], *asked[12:]]
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # A view of its own for each argument: one tensor may be passed twice (tied weights).
            grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0, *weights = (
                t.view_as(t) if t is not None and t.requires_grad else t for t in ctx.saved_tensors
            )
            outputs = reference.lstm_layer(x, batch_sizes, h0, c0, weights, ctx.reverse)
            first = _grad(
                outputs,
                [t for t, need in zip((x, h0, c0, *weights), ctx.needs, strict=True) if need],
                (grad_y, grad_h_n, grad_c_n),
                create_graph=True,
            )
            inputs = (grad_y, grad_h_n, grad_c_n, x, h0, c0, *weights)
            found = iter(
                _grad(
                    first,
                    [t for t, need in zip(inputs, differentiated, strict=True) if need],
                    grads,
                    create_graph=create_graph,
                )
            )
        d_y, d_h_n, d_c_n, dx, dh0, dc0, *dweights = (
            next(found) if need else None for need in differentiated
        )
        nothing = (None,) * 5  # y, gates, c, reverse, needs
        return (d_y, d_h_n, d_c_n, dx, None, dh0, dc0, *nothing, *dweights)


def _grad(
    outputs: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor | None],
    create_graph: bool,
) -> Sequence[Tensor | None]:
    """``torch.autograd.grad`` of the outputs that have a gradient; None for independent inputs."""
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, grad_outputs, strict=True)
        if output is not None and output.requires_grad and grad is not None
    ]
    if not pairs or not inputs:
        return [None] * len(inputs)
    used, used_grads = zip(*pairs, strict=True)
    return torch.autograd.grad(
        used, inputs, used_grads, create_graph=create_graph, allow_unused=True
    )
