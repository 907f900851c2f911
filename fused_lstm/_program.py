"""What PyTorch has to know of the ops: shapes without values, and what ``lstm`` differentiates to.

``fused_lstm::lstm`` is the layer in a program: compiled, exported and traced graphs hold it. It
says nothing of what is saved; that is decided where a graph is differentiated, or run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_lstm import _ops, _transforms, autograd, batching, ensemble, reference
from fused_lstm._checks import check_shapes

NO_RULE = (
    "a traced program that saves what backward needs has no derivative in forward mode and no "
    "second one under torch.func: trace fused_lstm.lstm() without a derivative, which has all"
)


def _batch(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor | None, c0: Tensor | None
) -> int | torch.SymInt:
    """B; of packed input without a state the first of ``batch_sizes``, unseen while tracing."""
    if batch_sizes is None:
        return math.prod(x.shape[1:-1])
    if h0 is not None or c0 is not None:
        return (c0 if h0 is None else h0).shape[1]
    if type(batch_sizes) is Tensor:  # x alone has no values: the meta device
        return int(batch_sizes[0])
    return torch.library.get_ctx().new_dynamic_size(min=1)


def fake_forward(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    reverse: list[bool],
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    directions = len(reverse)
    if batch_sizes is None and x.dim() == 4:
        x = x.flatten(1, 2)  # rows of several members
    dims = 3 if batch_sizes is None else 2
    if x.dim() != dims:
        raise RuntimeError(f"fused_lstm: expected {dims}-D x, got {x.dim()}-D")
    known_batch = x.shape[1] if batch_sizes is None else None
    check_shapes(x, h0, c0, weights, directions, len(weights) // directions, known_batch)
    hidden = weights[0].shape[0] // 4
    proj = weights[1].shape[1]
    batch = _batch(x, batch_sizes, h0, c0)
    rows = x.shape[0] if batch_sizes is not None else x.shape[0] * x.shape[1]
    state = reference.sum_dtype(x.dtype)
    return (
        x.new_empty((*x.shape[:-1], directions * proj)),
        x.new_empty((directions, batch, proj)),
        x.new_empty((directions, batch, hidden)),
        x.new_empty((directions, rows, 4 * hidden) if save else (0,)),
        x.new_empty((directions, rows, hidden) if save else (0,), dtype=state),
    )


def fake_backward(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    reverse: list[bool],
    y: Tensor,
    gates: Tensor,
    c: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    batch = _batch(x, batch_sizes, h0, c0) if needs[1] or needs[2] else 0
    directions = len(reverse)
    shapes = [
        x.shape,
        (directions, batch, weights[1].shape[1]),
        (directions, batch, c.shape[-1]),
        *[w.shape for w in weights],
    ]
    return [x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)]


def _fake_backward_gates(*args: Any) -> list[Tensor]:
    return [*fake_backward(*args), args[10].new_empty(args[10].shape)]  # as the gates


def _fake_ensemble(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    reverse: list[bool],
    save: bool,
) -> tuple[Tensor, ...]:
    h0, c0 = (None if state is None else state[0] for state in (h0, c0))
    first = fake_forward(x[0], batch_sizes, h0, c0, [w[0] for w in weights], reverse, save)
    return tuple(t.new_empty((x.shape[0], *t.shape)) for t in first)


def _fake_ensemble_backward(*args: Any) -> list[Tensor]:
    *tensors, needs = [
        [t[0] for t in arg] if k == 7 else arg[0] if isinstance(arg, Tensor) and k != 4 else arg
        for k, arg in enumerate(args)
    ]
    return [t.new_empty((args[3].shape[0], *t.shape)) for t in fake_backward(*tensors, needs)]


def _fake_member_products(left: Tensor, right: list[Tensor], members: int) -> list[Tensor]:
    shape = (members, left.shape[1])
    return [*(left.new_empty((*shape, t.shape[1])) for t in right), left.new_empty(shape)]


def _fake_lstm(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    reverse: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_forward(x, batch_sizes, h0, c0, weights, [r != 0 for r in reverse], False)[:3]


def _forward_recorded(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    reverse: list[bool],
    save: bool,
) -> tuple[Tensor, ...]:
    """``lstm_layer`` where a derivative is recorded."""
    if _transforms.covered():
        outputs = autograd.apply(autograd.LSTMLayer, x, batch_sizes, h0, c0, reverse, *weights)
    elif save:
        raise NotImplementedError(NO_RULE)
    else:
        outputs = reference.lstm_layer(x, batch_sizes, h0, c0, weights, reverse)
    return outputs if save else (*outputs[:3], x.new_empty(0), x.new_empty(0))


def _backward_recorded(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    reverse: list[bool],
    y: Tensor,
    gates: Tensor,
    c: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """``lstm_layer_backward`` where a derivative is recorded."""
    if not _transforms.covered():
        if _transforms.func_active():
            raise NotImplementedError(NO_RULE)
        grads = autograd.gradients_of_layer(
            grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0, weights, reverse, y, gates, c, needs
        )
        return [x.new_empty(0) if grad is None else grad for grad in grads]
    found = autograd.apply(
        autograd.LSTMLayerBackward, grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0,
        y, gates, c, reverse, needs, *weights,
    )  # fmt: skip
    rest = iter(found)
    return [next(rest) if need else x.new_empty(0) for need in needs]


def _vmap_lstm(size: int, in_dims: Sequence, *args: Any) -> batching.Mapped:
    *values, weights, reverse = args
    return batching.members(
        lambda *args: _ops.lstm(*args[:4], args[4:], reverse),
        lambda *args: ensemble.lstm_ensemble(*args[:4], args[4:], reverse, False)[:3],
        size,
        (*in_dims[:4], *in_dims[4]),
        (*values, *weights),
        lengths=1,
        weights=4,
        input=0,
    )


def _vmap_forward(size: int, in_dims: Sequence, *args: Any) -> batching.Mapped:
    *values, weights, reverse, save = args
    count = 5 if save else 3
    outputs, dims = batching.members(
        lambda *args: _ops.lstm_layer(*args[:4], args[4:], reverse, save)[:count],
        lambda *args: ensemble.lstm_ensemble(*args[:4], args[4:], reverse, save)[:count],
        size,
        (*in_dims[:4], *in_dims[4]),
        (*values, *weights),
        lengths=1,
        weights=4,
        input=0,
    )
    if save:
        return outputs, dims
    return (*outputs, *(args[0].new_empty(0) for _ in range(2))), (*dims, None, None)


def _vmap_backward(size: int, in_dims: Sequence, *args: Any) -> batching.Mapped:
    *values, weights, reverse, y, gates, c, needs = args
    found, dims = batching.backward_members(
        size,
        (*in_dims[:7], *in_dims[9:12], *in_dims[7]),
        (*values, y, gates, c, *weights),
        reverse,
        needs,
    )
    rest = iter(zip(found, dims, strict=True))
    nothing = (args[3].new_empty(0), None)
    grads, dims = zip(*(next(rest) if need else nothing for need in needs), strict=True)
    return list(grads), list(dims)


if _ops.extension is not None:
    _library = torch.library.Library("fused_lstm", "FRAGMENT")
    for _name, _function in (
        ("_lstm_layer_recorded", _forward_recorded),
        ("_lstm_layer_backward_recorded", _backward_recorded),
    ):
        _library.impl(_name, _transforms.untraced(_function), "CompositeImplicitAutograd")
    for _name, _fake, _rule in (
        ("lstm", _fake_lstm, _vmap_lstm),
        ("lstm_layer", fake_forward, _vmap_forward),
        ("lstm_layer_backward", fake_backward, _vmap_backward),
    ):
        torch.library.register_fake(f"fused_lstm::{_name}")(_fake)
        _transforms.register_vmap(_library, _name, _rule)
    for _name, _fake in (
        ("_lstm_layer_backward_gates", _fake_backward_gates),
        ("_lstm_ensemble", _fake_ensemble),
        ("_lstm_ensemble_backward", _fake_ensemble_backward),
        ("_member_products", _fake_member_products),
    ):
        torch.library.register_fake(f"fused_lstm::{_name}")(_fake)
