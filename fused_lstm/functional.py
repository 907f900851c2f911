"""``lstm()``: layers, directions, dropout, packing and autocast around the one-layer op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fused_lstm._autocast import autocast, autocast_dtype, state_dtype
from fused_lstm._checks import State, check_hidden, check_input, check_same
from fused_lstm.autograd import lstm_layer

_FORWARD = [False]
_BOTH = [False, True]


def lstm(
    input: Tensor | PackedSequence,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    *,
    batch_first: bool = False,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
) -> tuple[Tensor | PackedSequence, State]:
    """A stack of LSTM layers, as ``torch.nn.LSTM`` computes it.

    Args:
        input: ``[T, B, I]`` (``[B, T, I]`` with ``batch_first``), unbatched ``[T, I]``, or a
            ``PackedSequence``, which stays packed.
        hx: ``(h0 [L*D, B, P], c0 [L*D, B, H])``, without B for unbatched input; None for zeros.
            D is the number of directions and P is H without a projection.
        params: one sequence of tensors per layer and direction, the directions of a layer next to
            each other: ``w_ih [4H, I]``, ``w_hh [4H, P]``, then ``b_ih [4H]`` and ``b_hh [4H]``
            with biases, then ``w_hr [P, H]`` with a projection; gates in the order i, f, g, o.
            This is ``all_weights`` of ``torch.nn.LSTM`` and of ``fused_lstm.LSTM``.
        batch_first: whether dense input and output have the batch first; ``hx`` never has.
        bidirectional: whether every layer also runs backwards in time.
        dropout: probability of an element between two layers being zeroed, if ``training``.
        training: whether dropout is applied.

    Returns:
        ``output`` shaped as the input with ``D*P`` features, and ``(h_n, c_n)`` shaped as ``hx``.
        All of the input's dtype: float32, float64, bfloat16 or float16.

    Raises:
        ValueError, RuntimeError: for shapes, dtypes or devices that do not fit, in the words of
            ``torch.nn.LSTM`` where it has any.
    """
    if not training:
        dropout = 0.0
    if isinstance(input, PackedSequence):
        return _lstm_packed(input, hx, params, bidirectional, dropout)
    dims = input.dim()
    if dims != 3 and dims != 2:
        raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {dims}D instead")
    if hx is not None and (hx[0].dim() != dims or hx[1].dim() != dims):
        kind = "batched 3-D" if dims == 3 else "unbatched 2-D"
        raise RuntimeError(
            f"For {kind} input, hx and cx should also be {dims}-D "
            f"but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )
    if dims == 2:
        x = input.unsqueeze(1)
        hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    else:
        x = input.transpose(0, 1) if batch_first else input

    y, h_n, c_n = _lstm_layers(x, None, hx, params, bidirectional, dropout)
    if dims == 2:
        return y.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
    return y.transpose(0, 1) if batch_first else y, (h_n, c_n)


def _lstm_packed(
    input: PackedSequence,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    bidirectional: bool,
    dropout: float,
) -> tuple[PackedSequence, State]:
    x, batch_sizes, sorted_indices, unsorted_indices = input
    if hx is not None and sorted_indices is not None:
        check_hidden(hx, int(batch_sizes[0]), params)
        hx = (hx[0].index_select(1, sorted_indices), hx[1].index_select(1, sorted_indices))
    y, h_n, c_n = _lstm_layers(x, batch_sizes, hx, params, bidirectional, dropout)
    if unsorted_indices is not None:
        h_n, c_n = h_n.index_select(1, unsorted_indices), c_n.index_select(1, unsorted_indices)
    return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), (h_n, c_n)


def _lstm_layers(
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    bidirectional: bool,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``x [T, B, I]`` or packed ``[N, I]`` through all layers, under autocast or not."""
    dtype = autocast_dtype(x)
    if dtype is None:
        return _checked_layers(x, batch_sizes, hx, params, bidirectional, dropout)
    c_dtype = state_dtype(x, None if hx is None else hx[1], dtype)
    projected = len(params[0]) in (3, 5)
    if batch_sizes is None and not projected and c_dtype != torch.float64:
        c_dtype = dtype  # oneDNN runs this case, with all operands cast
    y, h_n, c_n = _checked_layers(
        autocast(x, dtype),
        batch_sizes,
        None if hx is None else (autocast(hx[0], dtype), autocast(hx[1], dtype)),
        [[autocast(p, dtype) for p in group] for group in params],
        bidirectional,
        dropout,
    )
    y_dtype = y.dtype if projected else c_dtype
    return y.to(y_dtype), h_n.to(y_dtype), c_n.to(c_dtype)


def _checked_layers(
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    bidirectional: bool,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    check_input(x, 3 if batch_sizes is None else 2, params[0][0])
    h0 = c0 = None
    if hx is not None:
        h0, c0 = hx
        check_hidden(hx, x.shape[1] if batch_sizes is None else int(batch_sizes[0]), params)
        check_same(x, "hidden", h0, c0)
    reverse = _FORWARD
    if bidirectional:
        reverse = _BOTH
        params = [[*params[k], *params[k + 1]] for k in range(0, len(params), 2)]
    if len(params) == 1:
        return lstm_layer(x, batch_sizes, h0, c0, params[0], reverse)
    return _stack(x, batch_sizes, h0, c0, params, reverse, dropout)


def _stack(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    layers: Sequence[Sequence[Tensor]],
    reverse: Sequence[bool],
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer after layer, with dropout on the output of every layer but the last."""
    nothing = [None] * len(layers)
    h0s = nothing if h0 is None else h0.split(len(reverse))
    c0s = nothing if c0 is None else c0.split(len(reverse))
    h_ns, c_ns = [], []
    for k, weights in enumerate(layers):
        if k > 0 and dropout > 0:
            x = torch.dropout(x, dropout, True)
        x, h_n, c_n = lstm_layer(x, batch_sizes, h0s[k], c0s[k], weights, reverse)
        h_ns.append(h_n)
        c_ns.append(c_n)
    return x, torch.cat(h_ns), torch.cat(c_ns)
