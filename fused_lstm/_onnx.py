"""The layer as ONNX's ``LSTM``: what ``torch.onnx.export(..., dynamo=True)`` writes down."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from fused_lstm import _ops


def lstm_layer(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    reverse: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, all its directions; arguments as of :func:`fused_lstm.reference.lstm_layer`.

    Raises:
        NotImplementedError: for packed input and for a projection, which ONNX's operator lacks.
    """
    per_direction = len(weights) // len(reverse)
    if batch_sizes is not None:
        refuse("ONNX's LSTM takes no packed input: export the layer on a padded batch")
    if per_direction % 2:
        refuse("ONNX's LSTM has no projection: export a layer without proj_size")
    groups = [weights[k : k + per_direction] for k in range(0, len(weights), per_direction)]
    w, r = (torch.stack([_gates_as_onnx(group[k]) for group in groups]) for k in (0, 1))
    b = None
    if per_direction == 4:
        b = torch.stack([torch.cat([_gates_as_onnx(p) for p in group[2:]]) for group in groups])
    steps, batch = x.shape[:2]
    hidden, directions = r.shape[2], len(reverse)
    y, h_n, c_n = torch.onnx.ops.symbolic_multi_out(
        "LSTM",
        (x, w, r, b, None, h0, c0),
        attrs={"hidden_size": hidden, "direction": _direction(reverse)},
        dtypes=(x.dtype,) * 3,
        shapes=(
            (steps, directions, batch, hidden),
            (directions, batch, hidden),
            (directions, batch, hidden),
        ),
    )
    return y.transpose(1, 2).flatten(2), h_n, c_n


def refuse(reason: str) -> NoReturn:
    """Raise, and warn too: the exporter tries another way, and shows what came of that."""
    warnings.warn(reason, _ops.FusedLSTMWarning, stacklevel=2)
    raise NotImplementedError(reason)


def _gates_as_onnx(weight: Tensor) -> Tensor:
    """``[i f g o]`` in ONNX's order ``[i o f c]``, whose c is the g of PyTorch."""
    size = weight.shape[0] // 4
    i, f, g, o = (weight[k * size : (k + 1) * size] for k in range(4))
    return torch.cat([i, o, f, g])


def _direction(reverse: Sequence[bool]) -> str:
    if len(reverse) == 2:
        return "bidirectional"
    return "reverse" if reverse[0] else "forward"
