"""The mathematics of one LSTM layer in plain PyTorch.

It runs on any device and dtype and PyTorch can transform it in any way: second derivatives and
forward mode go through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_lstm._autocast import without_autocast
from fused_lstm._checks import check_shapes


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that products are summed and c is carried in: float32 for those of 16 bits."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


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

    Raises:
        RuntimeError: if a shape, a dtype or a device does not fit.
    """
    nothing = (None, None, None, None)
    return _layer(x, batch_sizes, h0, c0, weights, reverse, *nothing, inside=False)[:3]


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same of sequences with lengths, cut where they are reset, and what happens inside.

    Args:
        lengths: ``[B]``, of dense input; None for T.
        reset: ``[T, B]`` bool: whether a row begins anew with a step, from ``reset_h`` and
            ``reset_c``; None for never.
        reset_h: ``[D, B, P]`` or None for zeros.
        reset_c: ``[D, B, H]`` or None for zeros.
        x, batch_sizes, h0, c0, weights, reverse: as of :func:`lstm_layer`.

    Returns:
        ``y``, ``h_n`` and ``c_n``, then the activated gates ``[D, N, 4H]`` and ``c [D, N, H]`` of
        every row; all but the states are zero beyond a length.

    Raises:
        RuntimeError: if a shape, a dtype or a device does not fit.
    """
    return _layer(
        x, batch_sizes, h0, c0, weights, reverse, lengths, reset, reset_h, reset_c, inside=True
    )


def _layer(
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
    inside: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What :func:`lstm_sequence` returns; without gates and c of every row if not ``inside``."""
    directions = len(reverse)
    per_direction = len(weights) // directions
    rows_per_step = [x.shape[1]] * x.shape[0] if batch_sizes is None else batch_sizes.tolist()
    batch = x.shape[1] if batch_sizes is None else rows_per_step[0]
    check_shapes(x, h0, c0, weights, directions, per_direction, batch, reset_h, reset_c)

    found = []
    with without_autocast(x.device.type):
        for d, backwards in enumerate(reverse):
            masks = _Masks.of(x, lengths, reset, backwards)
            masks.h, masks.c = (None if s is None else s[d] for s in (reset_h, reset_c))
            part = _one_direction(
                masks.live_input(x).flatten(0, 1) if batch_sizes is None else x,
                rows_per_step,
                batch,
                None if h0 is None else h0[d],
                None if c0 is None else c0[d],
                weights[d * per_direction : (d + 1) * per_direction],
                backwards,
                masks,
                inside,
            )
            found.append(part)
        ys, *rest = zip(*found, strict=True)
        y = ys[0] if directions == 1 else torch.cat(ys, -1)
        if batch_sizes is None:
            y = y.reshape(*x.shape[:2], y.shape[-1])
        return y, *(torch.stack(parts) for parts in rest)


@dataclass
class _Masks:
    """What the steps of a dense batch mean for one direction; nothing where all steps count."""

    live: Tensor | None  # [T, B, 1] steps of a sequence, None for all
    cut: Tensor | None  # [T, B, 1] steps that do not go on from the step walked before them
    h: Tensor | None = None  # [B, P] the state after a cut, None for zeros
    c: Tensor | None = None  # [B, H]

    @classmethod
    def of(cls, x: Tensor, lengths: Tensor | None, reset: Tensor | None, backwards: bool) -> _Masks:
        live = None
        if lengths is not None:
            steps = torch.arange(x.shape[0], device=x.device)
            live = (steps[:, None] < lengths).unsqueeze(-1)
        cut = None
        if reset is not None:
            cut = reset.unsqueeze(-1) if live is None else reset.unsqueeze(-1) & live
            if backwards:  # a step goes on from the step after it, unless that begins anew
                cut = torch.cat([cut[1:], torch.zeros_like(cut[:1])])
        return cls(live, cut)

    def live_input(self, x: Tensor) -> Tensor:
        """``x`` without what lies beyond the lengths, which may be anything."""
        return x if self.live is None else torch.where(self.live, x, 0)

    def before(self, t: int, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The state that step ``t`` goes on from."""
        if self.cut is None:
            return h, c
        begin_h, begin_c = (0 if s is None else s for s in (self.h, self.c))
        cut = self.cut[t]
        return (
            torch.where(cut, begin_h, h).to(h.dtype),
            torch.where(cut, begin_c, c).to(c.dtype),
        )

    def keep(self, t: int, new: Tensor, old: Tensor | int) -> Tensor:
        """``new`` in rows that have a step ``t``, else ``old``."""
        return new if self.live is None else torch.where(self.live[t], new, old)


def _one_direction(
    x: Tensor,
    rows_per_step: list[int],
    batch: int,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    backwards: bool,
    masks: _Masks,
    inside: bool,
) -> tuple[Tensor, ...]:
    """``x [N, I]`` through one direction.

    Returns ``y [N, P]``, ``h_n [B, P]``, ``c_n [B, H]``, gates ``[N, 4H]`` and ``c [N, H]``.
    """
    dtype = x.dtype
    wide = sum_dtype(dtype)
    w_ih, w_hh, *rest = (w.to(wide) for w in weights)
    w_hr = rest.pop() if len(rest) % 2 else None
    bias = rest[0] + rest[1] if rest else None
    out_size, hidden_size = w_hh.shape[1], w_hh.shape[0] // 4

    # Rows of finished sequences stay behind in h and c (forward), rows of sequences that have not
    # begun hold the initial state (backward): one loop serves both.
    h = x.new_zeros(batch, out_size) if h0 is None else h0
    c = x.new_zeros(batch, hidden_size) if c0 is None else c0
    c = c.to(wide)
    x_gates = F.linear(x.to(wide), w_ih, bias).split(rows_per_step)  # T x [rows, 4H]
    steps = range(len(rows_per_step))
    ys: list[Tensor] = []
    all_gates: list[Tensor] = []
    cs: list[Tensor] = []
    for t in reversed(steps) if backwards else steps:
        rows = rows_per_step[t]
        h, c = masks.before(t, h, c)
        gates = x_gates[t] + F.linear(h[:rows].to(wide), w_hh)
        i, f, g, o = gates.chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_t = f * c[:rows] + i * g
        h_t = o * c_t.tanh()
        if w_hr is not None:
            h_t = F.linear(h_t, w_hr)
        h_t = h_t.to(dtype)
        ys.append(masks.keep(t, h_t, 0))
        if inside:
            all_gates.append(masks.keep(t, torch.cat([i, f, g, o], 1), 0))
            cs.append(masks.keep(t, c_t, 0))
        h_t, c_t = masks.keep(t, h_t, h[:rows]), masks.keep(t, c_t, c[:rows])
        h = h_t if rows == batch else torch.cat([h_t, h[rows:]])
        c = c_t if rows == batch else torch.cat([c_t, c[rows:]])
    results = []
    sizes = ((ys, out_size, dtype), (all_gates, 4 * hidden_size, dtype), (cs, hidden_size, c.dtype))
    for steps_of, size, kind in sizes:
        if backwards:
            steps_of.reverse()
        results.append(torch.cat(steps_of) if steps_of else x.new_empty(0, size, dtype=kind))
    y, gates, all_c = results
    return y, h, c.to(dtype), gates.to(dtype), all_c


def unprojected(gates: Tensor, c: Tensor) -> Tensor:
    """``o tanh(c) [D, N, H]``, the output before a projection, from what the forward op saved."""
    o = gates[..., 3 * c.shape[-1] :]
    return (o * c.tanh()).to(gates.dtype)
