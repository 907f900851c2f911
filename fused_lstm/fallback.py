"""PyTorch's own LSTM on the same tensors, for where the extension does not run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_lstm._autocast import without_autocast
from fused_lstm._checks import State, check_shapes


def lstm(
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    bidirectional: bool,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """All layers of ``x [T, B, I]`` or packed ``[N, I]``; arguments as of ``fused_lstm.lstm``."""
    batch = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
    if hx is None:
        hx = zero_state(x, batch, params)
    check_shapes(x, *hx, params[0], len(params), len(params[0]), batch)
    flat = [p for group in params for p in group]
    layers = len(params) // (2 if bidirectional else 1)
    # cuDNN keeps what backward needs in training mode only; without dropout that is all it means.
    training = dropout > 0 or (x.is_cuda and torch.is_grad_enabled())
    options = (len(params[0]) > 3, layers, dropout, training, bidirectional)
    with without_autocast(x.device.type):
        if batch_sizes is None:
            return torch.lstm(x, hx, flat, *options, False)
        return torch.lstm(x, batch_sizes, hx, flat, *options)


def zero_state(x: Tensor, batch: int, params: Sequence[Sequence[Tensor]]) -> State:
    """What ``hx=None`` means: ``h0 [L*D, B, P]`` and ``c0 [L*D, B, H]``."""
    gates, proj = params[0][1].shape
    return x.new_zeros(len(params), batch, proj), x.new_zeros(len(params), batch, gates // 4)


def lstm_cell(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor]) -> State:
    """One step of ``x [B, I]`` from ``h0`` and ``c0 [B, H]``."""
    if h0 is None:
        h0 = c0 = x.new_zeros(x.shape[0], weights[1].shape[1])
    elif h0.dim() != 2 or c0.dim() != 2:  # PyTorch may crash on them, and checks all else
        raise RuntimeError("fused_lstm: expected states of the input's rank")
    with without_autocast(x.device.type):
        return torch.lstm_cell(x, (h0, c0), *weights)
