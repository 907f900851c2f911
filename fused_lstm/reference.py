"""The mathematics of one LSTM layer in plain PyTorch.

It runs on any device and dtype and PyTorch can transform it in any way: second derivatives and
forward mode go through it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_lstm._autocast import without_autocast

_HALF_TYPES = (torch.bfloat16, torch.float16)


def lstm_layer(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    reverse: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, all its directions. Takes and returns what the op ``fused_lstm::lstm_layer`` does.

    Per step: ``[i f g o] = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh``, then
    ``c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)`` and ``h_t = sigmoid(o) tanh(c_t)``,
    and ``h_t = W_hr h_t`` with a projection. For bfloat16 and float16 the products are summed and
    c is carried in float32; h is rounded once per step.

    Args:
        x: dense ``[T, B, I]``, or ``[N, I]`` packed rows where ``batch_sizes`` is given.
        batch_sizes: ``[T]`` int64 on the CPU, never increasing, or None.
        h0: ``[D, B, P]`` or None for zeros; P is H without a projection.
        c0: ``[D, B, H]`` or None for zeros.
        weights: for each direction ``w_ih [4H, I]``, ``w_hh [4H, P]``, then ``b_ih [4H]`` and
            ``b_hh [4H]`` with biases, then ``w_hr [P, H]`` with a projection.
        reverse: one flag per direction: whether it walks time backwards.

    Returns:
        ``y`` (``[T, B, D*P]`` or ``[N, D*P]``), ``h_n [D, B, P]`` and ``c_n [D, B, H]``, in the
        dtype of ``x``.
    """
    directions = len(reverse)
    per_direction = len(weights) // directions
    rows_per_step = [x.shape[1]] * x.shape[0] if batch_sizes is None else batch_sizes.tolist()

    ys, h_ns, c_ns = [], [], []
    with without_autocast(x.device.type):
        for d, backwards in enumerate(reverse):
            y, h_n, c_n = _one_direction(
                x.flatten(0, 1) if batch_sizes is None else x,
                rows_per_step,
                x.shape[1] if batch_sizes is None else rows_per_step[0],
                None if h0 is None else h0[d],
                None if c0 is None else c0[d],
                weights[d * per_direction : (d + 1) * per_direction],
                backwards,
            )
            ys.append(y)
            h_ns.append(h_n)
            c_ns.append(c_n)
        y = ys[0] if directions == 1 else torch.cat(ys, -1)
        if batch_sizes is None:
            y = y.reshape(*x.shape[:2], y.shape[-1])
        return y, torch.stack(h_ns), torch.stack(c_ns)


def _one_direction(
    x: Tensor,
    rows_per_step: list[int],
    batch: int,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    backwards: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``x [N, I]`` through one direction: ``y [N, P]``, ``h_n [B, P]``, ``c_n [B, H]``."""
    dtype = x.dtype
    sum_dtype = torch.float32 if dtype in _HALF_TYPES else dtype
    w_ih, w_hh, *rest = (w.to(sum_dtype) for w in weights)
    w_hr = rest.pop() if len(rest) % 2 else None
    bias = rest[0] + rest[1] if rest else None
    out_size, hidden_size = w_hh.shape[1], w_hh.shape[0] // 4

    # Rows of finished sequences stay behind in h and c (forward), rows of sequences that have not
    # begun hold the initial state (backward): one loop serves both.
    h = x.new_zeros(batch, out_size) if h0 is None else h0
    c = x.new_zeros(batch, hidden_size) if c0 is None else c0
    c = c.to(sum_dtype)
    x_gates = F.linear(x.to(sum_dtype), w_ih, bias).split(rows_per_step)  # T x [rows, 4H]
    steps = range(len(rows_per_step))
    ys: list[Tensor] = []
    for t in reversed(steps) if backwards else steps:
        rows = rows_per_step[t]
        gates = x_gates[t] + F.linear(h[:rows].to(sum_dtype), w_hh)
        i, f, g, o = gates.chunk(4, 1)
        c_t = f.sigmoid() * c[:rows] + i.sigmoid() * g.tanh()
        h_t = o.sigmoid() * c_t.tanh()
        if w_hr is not None:
            h_t = F.linear(h_t, w_hr)
        h_t = h_t.to(dtype)
        ys.append(h_t)
        h = h_t if rows == batch else torch.cat([h_t, h[rows:]])
        c = c_t if rows == batch else torch.cat([c_t, c[rows:]])
    if backwards:
        ys.reverse()
    y = torch.cat(ys) if ys else x.new_empty(0, out_size)
    return y, h, c.to(dtype)


def unprojected(gates: Tensor, c: Tensor) -> Tensor:
    """``o tanh(c) [D, N, H]``, the output before a projection, from what the forward op saved."""
    o = gates[..., 3 * c.shape[-1] :]
    return (o * c.tanh()).to(gates.dtype)


def output_of(gates: Tensor, c: Tensor, weights: Sequence[Tensor], directions: int) -> Tensor:
    """The output ``[N, D*P]`` from what the forward op saved: ``gates [D, N, 4H]``, ``c``."""
    h = unprojected(gates, c)
    per_direction = len(weights) // directions
    if per_direction % 2:
        h = torch.stack(
            [F.linear(h[d], weights[(d + 1) * per_direction - 1]) for d in range(directions)]
        )
    return h.transpose(0, 1).flatten(1)
