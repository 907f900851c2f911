"""The op ``fused_lstm::lstm_sequence``: its shapes without values, and its derivative.

It is ``lstm_layer`` with more to say: lengths, resets, gradients into c, and steps that are
computed again in backward. Plain autograd records a node of the op's own (``csrc/autograd.cpp``).
``vmap`` runs all members in one fused call where they share the weights, else each by itself.
Derivatives under a transform, forward mode and second derivatives go through the reference, whose
operations PyTorch transforms by itself; all but the first under one ``grad`` of the op alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_lstm import _ops, _program, _transforms, autograd, batching, reference


class LSTMSequence(torch.autograd.Function):
    """``lstm_sequence`` of ``(x, batch_sizes, h0, c0, reverse, lengths, reset, reset_h, reset_c,
    keep_every, compact, *weights)`` under a transform, everything saved.

    ``c`` is differentiable where it is complete: where ``keep_every`` is 0, and not ``compact``.
    """  # fmt: skip

    @staticmethod
    def forward(
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
        """Run the op, saving what its backward needs."""
        with _transforms.below_this_level():
            return tuple(
                _ops.lstm_sequence(
                    x, batch_sizes, h0, c0, weights, reverse,
                    lengths, reset, reset_h, reset_c, True, keep_every, compact,
                )
            )  # fmt: skip

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Save by ``save_for_backward`` only: hooks and in-place checks then see every tensor."""
        x, batch_sizes, h0, c0, reverse, *rest = inputs
        lengths, reset, reset_h, reset_c, keep_every, compact, *weights = rest
        y, _, _, gates, c = output
        ctx.mark_non_differentiable(*((gates, c) if keep_every or compact else (gates,)))
        ctx.set_materialize_grads(False)
        inputs = (x, batch_sizes, h0, c0, lengths, reset, reset_h, reset_c)
        ctx.save_for_backward(*inputs, y, gates, c, *weights)
        ctx.reverse, ctx.keep_every, ctx.compact = reverse, keep_every, compact

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
        dx, dh0, dc0, *rest = gradients_of_sequence(
            *grads, x, batch_sizes, h0, c0, weights, ctx.reverse,
            lengths, reset, reset_h, reset_c, y, gates, c, needs, ctx.keep_every, ctx.compact,
        )  # fmt: skip
        return (dx, None, dh0, dc0, None, None, None, *rest[-2:], None, None, *rest[:-2])


def _has_rule() -> bool:
    """Whether the ops have a derivative here: in plain autograd, and under one ``grad``.

    Not under ``vmap``, which has a rule for the op and none for its backward.
    """
    return _transforms.covered() and "Vmap" not in _transforms.stack()


def gradients_of_sequence(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_c: Tensor | None,
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
    y: Tensor,
    gates: Tensor,
    c: Tensor,
    needs: Sequence[bool],
    keep_every: int,
    compact: bool,
) -> list[Tensor | None]:
    """Of x, h0, c0, each weight, reset_h and reset_c; None where not needed.

    By the fused op, and by the reference where the op has no derivative for what is active.
    """
    grads = (grad_y, grad_h_n, grad_c_n, grad_c)
    plain = _has_rule() and not _transforms.any_legacy_batched(*grads)
    if torch.is_grad_enabled() or not plain:
        found = iter(
            _reference_gradients(
                grads, x, batch_sizes, h0, c0, reverse,
                lengths, reset, reset_h, reset_c, needs, weights,
            )
        )  # fmt: skip
        return [next(found) if need else None for need in needs]
    found = _ops.lstm_sequence_backward(
        *grads, x, batch_sizes, h0, c0, weights, reverse,
        lengths, reset, reset_h, reset_c, y, gates, c, needs, keep_every, compact,
    )  # fmt: skip
    return [grad if need else None for grad, need in zip(found, needs, strict=True)]


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
    return autograd.pull_back(outputs, wanted, [grad for grad in grads if grad is not None])


def _sequence_recorded(
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
    """``lstm_sequence`` where a derivative is recorded under a transform."""
    if _has_rule():
        outputs = autograd.apply(
            LSTMSequence, x, batch_sizes, h0, c0, reverse, lengths, reset, reset_h, reset_c,
            keep_every, compact, *weights,
        )  # fmt: skip
    elif save and compact:
        raise NotImplementedError(_program.NO_RULE)
    else:
        outputs = reference.lstm_sequence(
            x, batch_sizes, h0, c0, weights, reverse, lengths, reset, reset_h, reset_c
        )
        if keep_every:
            outputs = (*outputs[:3], x.new_empty(0), outputs[4])
    return outputs if save else (*outputs[:3], x.new_empty(0), x.new_empty(0))


def _backward_recorded(*args: Any) -> list[Tensor]:
    """``lstm_sequence_backward``, called by itself, where a derivative is recorded."""
    if _transforms.func_active():
        raise NotImplementedError(_program.NO_RULE)
    x = args[4]
    return [x.new_empty(0) if grad is None else grad for grad in gradients_of_sequence(*args)]


def _fake_forward(*args: Any) -> tuple[Tensor, ...]:
    *layer, _, _, _, _, save, keep_every, _ = args
    y, h_n, c_n, gates, c = _program.fake_forward(*layer, save)
    return y, h_n, c_n, gates.new_empty(0) if keep_every else gates, c


def _fake_backward(*args: Any) -> list[Tensor]:
    *grads, _ = args[:4]
    *layer, _, _, reset_h, reset_c, y, gates, c, needs, _, _ = args[4:]
    found = _program.fake_backward(*grads, *layer, y, gates, c, needs[:-2])
    states = zip((reset_h, reset_c), needs[-2:], strict=True)
    return [*found, *(y.new_empty(t.shape if need else (0,)) for t, need in states)]


def _vmap_sequence(size: int, in_dims: Sequence, *args: Any) -> batching.Mapped:
    """All members in one call, where they share the weights: each row of a member is a row more."""
    x, batch_sizes, h0, c0, weights, reverse, lengths, reset, *rest = args
    reset_h, reset_c, save, keep_every, compact = rest
    # Saved where no row has a place of its own, they are for backward alone, which saves by itself.
    save = save and not compact

    def run(
        x: Tensor,
        batch_sizes: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        reset_h: Tensor | None,
        reset_c: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        lengths, reset = (None if t is None else t.squeeze(-1) for t in (lengths, reset))
        found = _ops.lstm_sequence(
            x, batch_sizes, h0, c0, weights, reverse,
            lengths, reset, reset_h, reset_c, save, keep_every, compact,
        )  # fmt: skip
        return found if save and not keep_every else found[:3]

    lengths, reset = (None if t is None else t.unsqueeze(-1) for t in (lengths, reset))
    outputs, dims = batching.members(
        run,
        None,
        size,
        (*in_dims[:4], *in_dims[8:10], *in_dims[6:8], *in_dims[4]),
        (x, batch_sizes, h0, c0, reset_h, reset_c, lengths, reset, *weights),
        lengths=1,
        weights=8,
    )
    missing = 5 - len(outputs)
    return (*outputs, *[x.new_empty(0)] * missing), (*dims, *[None] * missing)


if _ops.extension is not None:
    _library = torch.library.Library("fused_lstm", "FRAGMENT")
    for _name, _function in (
        ("_lstm_sequence_recorded", _sequence_recorded),
        ("_lstm_sequence_backward_recorded", _backward_recorded),
    ):
        _library.impl(_name, _transforms.untraced(_function), "CompositeImplicitAutograd")
    _transforms.register_vmap(_library, "lstm_sequence", _vmap_sequence)
    torch.library.register_fake("fused_lstm::lstm_sequence")(_fake_forward)
    torch.library.register_fake("fused_lstm::lstm_sequence_backward")(_fake_backward)
    _ops.extension.set_transformed_gradients(autograd.gradients_of_layer, gradients_of_sequence)
