"""Gradients of shared weights for each member of a batch of problems, from one fused backward.

Only the recurrence is serial, and it runs for all members together. It gives the gradients d of the
gates' pre-activations; per member, ``dW_ih = sum_t d_t x_t``, ``dW_hh = sum_t d_t h_{t-1}``, both
biases have ``sum_t d_t``, and ``dW_hr = sum_t p_t (o_t tanh(c_t))`` with a projection, where p is
the gradient of the projected h: products with one matrix per member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fused_lstm import _ops, reference


@dataclass(frozen=True)
class Backward:
    """Arguments of the backward op, in its order; rows of the V members next to each other."""

    grad_y: Tensor | None
    grad_h_n: Tensor | None
    grad_c_n: Tensor | None
    x: Tensor  # dense [T, B*V, I] or packed [N*V, I]
    batch_sizes: Tensor | None
    h0: Tensor | None  # [D, B*V, P]
    c0: Tensor | None  # [D, B*V, H]
    weights: Sequence[Tensor]
    reverse: Sequence[bool]
    y: Tensor
    gates: Tensor  # [D, N*V, 4H]
    c: Tensor  # [D, N*V, H]

    def direction(self, d: int) -> Backward:
        """The same for one direction alone."""
        per_direction, size = len(self.weights) // len(self.reverse), self.weights[1].shape[1]

        def columns(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[..., d * size : (d + 1) * size]

        def one(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[d : d + 1]

        return Backward(
            columns(self.grad_y),
            one(self.grad_h_n),
            one(self.grad_c_n),
            self.x,
            self.batch_sizes,
            one(self.h0),
            one(self.c0),
            self.weights[d * per_direction : (d + 1) * per_direction],
            self.reverse[d : d + 1],
            columns(self.y),
            one(self.gates),
            one(self.c),
        )


def gradients(
    at: Backward, size: int, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor]]:
    """What the backward op returns, but with a gradient of each weight for each member.

    Args:
        at: the call; no derivative of the result is recorded.
        size: V.
        needs: one flag for x, h0, c0 and each weight.

    Returns:
        The gradients of x, h0 and c0, rows of V members next to each other, None where not needed;
        and ``[V, *weight.shape]`` for each weight that needs it.
    """
    *rows, d_gates = gate_gradients(at, needs[:3])
    count = len(at.weights) // len(at.reverse)
    weights = []
    for d in range(len(at.reverse)):
        asked = needs[3 + d * count : 3 + (d + 1) * count]
        weights += weight_gradients(at.direction(d), size, d_gates[d], asked)
    return *rows, weights


def gate_gradients(
    at: Backward, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """Of x, h0 and c0, None where not needed, and of the gates' pre-activations [D, N*V, 4H]."""
    found = _ops.lstm_layer_backward_gates(
        at.grad_y, at.grad_h_n, at.grad_c_n, at.x, at.batch_sizes, at.h0, at.c0, at.weights,
        at.reverse, at.y, at.gates, at.c, [*needs, *[False] * len(at.weights)],
    )  # fmt: skip
    dx, dh0, dc0 = (grad if need else None for grad, need in zip(found[:3], needs, strict=True))
    return dx, dh0, dc0, found[-1]


def weight_gradients(
    at: Backward, size: int, d_gates: Tensor, needs: Sequence[bool]
) -> list[Tensor]:
    """``[V, *weight.shape]`` for each weight of one direction that needs it."""
    biases = needs[2:4] if len(at.weights) > 3 else []
    right = []
    if needs[0]:
        right.append(at.x.flatten(0, -2))
    if needs[1]:
        right.append(previous_h(at))
    found = []
    if right or any(biases):
        *found, total = member_products(d_gates, right, size)
        found += [total.clone() for need in biases if need]
    if len(at.weights) % 2 and needs[-1]:
        hidden = reference.unprojected(at.gates, at.c)[0]
        found.append(member_products(gradient_of_h(at, d_gates), [hidden], size)[0])
    return found


def member_products(left: Tensor, right: Sequence[Tensor], size: int) -> list[Tensor]:
    """``sum_n left[n, v] right[n, v]`` for each right, and ``sum_n left[n, v]`` behind them.

    Of rows ``[N*V, L]`` and ``[N*V, R]``: ``[V, L, R]``, and ``[V, L]``.
    """
    if left.device.type == "cpu":
        return _ops.member_products(left, right, size)
    return batched_products(left, right, size)


def batched_products(left: Tensor, right: Sequence[Tensor], size: int) -> list[Tensor]:
    """The same by PyTorch's batched product, for devices that have no op for it."""

    def by_member(rows: Tensor) -> Tensor:
        return rows.view(rows.shape[0] // size, size, rows.shape[1])

    lefts = by_member(left)
    return [
        *(lefts.permute(1, 2, 0) @ by_member(rows).transpose(0, 1) for rows in right),
        lefts.sum(0),
    ]


def previous_h(at: Backward) -> Tensor:
    """The h that each row's step starts from: ``[N*V, P]``."""
    y = at.y.flatten(0, -2)
    rows = rows_per_step(at)
    h0 = at.h0[0] if at.h0 is not None else y.new_zeros(rows[0], y.shape[1])
    if at.batch_sizes is not None:
        return torch.cat([h0, y])[walked_rows(rows, at.reverse[0])[0].to(y.device)]
    return torch.cat([y[rows[0] :], h0] if at.reverse[0] else [h0, y[: -rows[0]]])


def gradient_of_h(at: Backward, d_gates: Tensor) -> Tensor:
    """Of the projected h of each row, which the output, the step that follows and h_n use."""
    used_next = d_gates @ at.weights[1]
    rows = rows_per_step(at)
    last = (
        at.grad_h_n[0]
        if at.grad_h_n is not None
        else used_next.new_zeros(rows[0], used_next.shape[1])
    )
    if at.batch_sizes is None:
        parts = [last, used_next[: -rows[0]]] if at.reverse[0] else [used_next[rows[0] :], last]
        d_h = torch.cat(parts)
    else:
        previous, ends = (t.to(last.device) for t in walked_rows(rows, at.reverse[0]))
        d_h = used_next.new_zeros(rows[0] + used_next.shape[0], used_next.shape[1])
        d_h[previous] = used_next
        d_h[ends] = last
        d_h = d_h[rows[0] :]
    return d_h if at.grad_y is None else d_h + at.grad_y.flatten(0, -2)


def rows_per_step(at: Backward) -> Sequence[int]:
    """The rows of every step, those of all members; of dense input once."""
    return [at.x.shape[1]] if at.batch_sizes is None else at.batch_sizes.tolist()


def walked_rows(rows_per_step: Sequence[int], backwards: bool) -> tuple[Tensor, Tensor]:
    """Which row each row's step starts from, and the row that each sequence ends with.

    Rows are numbered in a table of the initial states and then all rows of the output.
    """
    offsets = list(accumulate(rows_per_step, initial=rows_per_step[0]))
    state = torch.arange(rows_per_step[0])  # where the state of each sequence is
    previous: list[Tensor] = [state] * len(rows_per_step)
    steps = range(len(rows_per_step))
    for t in reversed(steps) if backwards else steps:
        rows = rows_per_step[t]
        previous[t] = state[:rows].clone()
        state[:rows] = torch.arange(offsets[t], offsets[t] + rows)
    return torch.cat(previous), state
