"""The gradient of an ensemble: V layers of the same sizes at once, all tensors with V in front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_lstm import _ops, _transforms
from fused_lstm.autograd import any_requires_grad, apply, gradients_of_layer


def lstm_ensemble(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    reverse: Sequence[bool],
    save: bool,
) -> tuple[Tensor, ...]:
    """``(y, h_n, c_n, gates, c)`` of V layers.

    Each is as the op ``lstm_layer`` gives it, with V in front; ``batch_sizes`` has none, as the
    members share it. Differentiable by plain autograd, any number of times, and by nothing else.
    """
    if torch.is_grad_enabled() and any_requires_grad(x, h0, c0, *weights):
        return apply(LSTMEnsemble, x, batch_sizes, h0, c0, reverse, *weights)
    return _ops.lstm_ensemble(x, batch_sizes, h0, c0, weights, reverse, save)


class LSTMEnsemble(torch.autograd.Function):
    """As :class:`fused_lstm.autograd.LSTMLayer`, of V members.

    The first derivative is one op too. Where that is itself differentiated, or mapped over, each
    member is a layer of its own.
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
        return tuple(_ops.lstm_ensemble(x, batch_sizes, h0, c0, weights, reverse, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Save every tensor; ``gates`` and ``c`` carry no gradient."""
        x, batch_sizes, h0, c0, reverse, *weights = inputs
        y, _, _, gates, c = output
        ctx.mark_non_differentiable(gates, c)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, batch_sizes, h0, c0, y, gates, c, *weights)
        ctx.reverse = reverse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of what is asked for, and of nothing else."""
        x, batch_sizes, h0, c0, y, gates, c, *weights = ctx.saved_tensors
        grads, asked = grads[:3], ctx.needs_input_grad
        needs = [asked[0], asked[2], asked[3], *asked[5:]]
        if all(grad is None for grad in grads):
            return (None,) * len(asked)
        plain = not (torch.is_grad_enabled() or _transforms.any_legacy_batched(*grads))
        if plain and not _transforms.transformed():
            found = _ops.lstm_ensemble_backward(
                *grads, x, batch_sizes, h0, c0, weights, ctx.reverse, y, gates, c, needs
            )
        else:

            def member(k: int) -> list[Tensor | None]:
                def of(t: Tensor | None) -> Tensor | None:
                    return None if t is None else t[k]

                return gradients_of_layer(
                    *map(of, grads), of(x), batch_sizes, of(h0), of(c0),
                    [w[k] for w in weights], ctx.reverse, of(y), of(gates), of(c), needs,
                )  # fmt: skip

            members = zip(*(member(k) for k in range(x.shape[0])), strict=True)
            found = [
                torch.stack(of_one) if need else None
                for of_one, need in zip(members, needs, strict=True)
            ]
        dx, dh0, dc0, *dweights = (
            grad if need else None for grad, need in zip(found, needs, strict=True)
        )
        return (dx, None, dh0, dc0, None, *dweights)
