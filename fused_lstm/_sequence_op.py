"""The op ``fused_lstm::lstm_sequence``: its shapes without values, and its derivative.

It is ``lstm_layer`` with more to say: lengths, resets, gradients into c, and steps that are
computed again in backward. Transforms of ``torch.func``, forward mode and second derivatives go
through the reference, whose operations PyTorch transforms by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_lstm import _ops, _program, _transforms, autograd, reference

_DIFFERENTIABLE = (0, 2, 3, 7, 8)  # x, h0, c0, reset_h, reset_c among the arguments below


class LSTMSequence(torch.autograd.Function):
    """``lstm_sequence`` of ``(x, batch_sizes, h0, c0, reverse, lengths, reset, reset_h, reset_c,
    keep_every, compact, *weights)``, everything saved.

    ``c`` is differentiable where it is complete: where ``keep_every`` is 0, and not ``compact``.
    """  # fmt: skip

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        batch_sizes: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        reverse: Sequence[bool],
        lengths: Tensor | None,
        reset: Tensor | None,
        reset_h: Tensor | None,
        reset_c: Tensor | None,
        keep_every: int,
        compact: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run the op, and save by ``save_for_backward`` only."""
        with torch._C._AutoDispatchBelowAutograd():
            y, h_n, c_n, gates, c = _ops.lstm_sequence(
                x, batch_sizes, h0, c0, weights, reverse,
                lengths, reset, reset_h, reset_c, True, keep_every, compact,
            )  # fmt: skip
        ctx.mark_non_differentiable(*((gates, c) if keep_every or compact else (gates,)))
        ctx.set_materialize_grads(False)
        inputs = (x, batch_sizes, h0, c0, lengths, reset, reset_h, reset_c)
        ctx.save_for_backward(*inputs, y, gates, c, *weights)
        ctx.reverse, ctx.keep_every, ctx.compact = reverse, keep_every, compact
        return y, h_n, c_n, gates, c

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of what is asked for, and of nothing else."""
        x, batch_sizes, h0, c0, lengths, reset, reset_h, reset_c, y, gates, c, *weights = (
            ctx.saved_tensors
        )
        asked = ctx.needs_input_grad
        grads = (*grads[:3], grads[4])
        if all(grad is None for grad in grads):
            return (None,) * len(asked)
        needs = [asked[0], asked[2], asked[3], *asked[11:], asked[7], asked[8]]
        plain = _transforms.covered() and not _transforms.any_legacy_batched(*grads)
        if torch.is_grad_enabled() or not plain:
            found = iter(
                _reference_gradients(
                    grads, x, batch_sizes, h0, c0, ctx.reverse,
                    lengths, reset, reset_h, reset_c, needs, weights,
                )
            )  # fmt: skip
            dx, dh0, dc0, *rest = (next(found) if need else None for need in needs)
        else:
            found = _ops.lstm_sequence_backward(
                *grads, x, batch_sizes, h0, c0, weights, ctx.reverse,
                lengths, reset, reset_h, reset_c, y, gates, c, needs, ctx.keep_every, ctx.compact,
            )  # fmt: skip
            dx, dh0, dc0, *rest = (
                grad if need else None for grad, need in zip(found, needs, strict=True)
            )
        return (dx, None, dh0, dc0, None, None, None, *rest[-2:], None, None, *rest[:-2])


def _reference_gradients(
    grads: Sequence[Tensor | None],
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    needs: Sequence[bool],
    weights: Sequence[Tensor],
) -> Sequence[Tensor]:
    """The gradients that are needed, in operations that PyTorch can transform."""
    inputs = (x, h0, c0, *weights, reset_h, reset_c)

    def outputs(*differentiated: Tensor) -> tuple[Tensor, ...]:
        rest = iter(differentiated)
        x, h0, c0, *others = (
            next(rest) if need else t for t, need in zip(inputs, needs, strict=True)
        )
        *weights, reset_h, reset_c = others
        y, h_n, c_n, _, c = reference.lstm_sequence(
            x, batch_sizes, h0, c0, weights, reverse, lengths, reset, reset_h, reset_c
        )
        pairs = zip((y, h_n, c_n, c), grads, strict=True)
        return tuple(t for t, grad in pairs if grad is not None)

    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    return autograd._pull_back(outputs, wanted, [grad for grad in grads if grad is not None])


def lstm_sequence(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    reverse: Sequence[bool],
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    save: bool,
    keep_every: int,
    compact: bool,
) -> tuple[Tensor, ...]:
    """The op at autograd's keys: recorded, or on to its device.

    Where what is active asks for more than one gradient, the reference takes its place.
    """
    if not _transforms.covered():
        if save:
            raise NotImplementedError(_program._NO_RULE)
        return reference.lstm_sequence(
            x, batch_sizes, h0, c0, weights, reverse, lengths, reset, reset_h, reset_c
        )
    if torch.is_grad_enabled() and autograd.any_requires_grad(
        x, h0, c0, reset_h, reset_c, *weights
    ):
        return autograd.apply(
            LSTMSequence, x, batch_sizes, h0, c0, reverse, lengths, reset, reset_h, reset_c,
            keep_every, compact, *weights,
        )  # fmt: skip
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.lstm_sequence(
            x, batch_sizes, h0, c0, weights, reverse,
            lengths, reset, reset_h, reset_c, save, keep_every, compact,
        )  # fmt: skip


def _fake_forward(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    reverse: list[bool],
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    save: bool,
    keep_every: int,
    compact: bool,
) -> tuple[Tensor, ...]:
    y, h_n, c_n, gates, c = _program._fake_forward(x, batch_sizes, h0, c0, weights, reverse, save)
    return y, h_n, c_n, x.new_empty(0) if keep_every else gates, c


def _fake_backward(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_c: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    reverse: list[bool],
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    y: Tensor,
    gates: Tensor,
    c: Tensor,
    needs: list[bool],
    keep_every: int,
    compact: bool,
) -> list[Tensor]:
    grads = _program._fake_backward(
        grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0, weights, reverse, y, gates, c,
        needs[:-2],
    )  # fmt: skip
    states = zip((reset_h, reset_c), needs[-2:], strict=True)
    return [*grads, *(x.new_empty(t.shape if need else (0,)) for t, need in states)]


if _ops.extension is not None:
    _library = torch.library.Library("fused_lstm", "FRAGMENT")
    _library.impl("lstm_sequence", _program._untraced(lstm_sequence), "Autograd")
    torch.library.register_fake("fused_lstm::lstm_sequence")(_fake_forward)
    torch.library.register_fake("fused_lstm::lstm_sequence_backward")(_fake_backward)
