"""``lstm()``: layers, directions, dropout, packing and autocast around the one-layer op."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fused_lstm import _ops, _transforms, fallback, reference
from fused_lstm._autocast import autocast, autocast_dtype, autocast_weight, state_dtype
from fused_lstm._checks import HALF_A_STATE, NO_STEPS, State, refusal_of_layer
from fused_lstm.autograd import BOTH, FORWARD, lstm_layer
from fused_lstm.sequences import SequenceCall

Run = Callable[..., tuple[Tensor, Tensor, Tensor]]


def lstm(
    input: Tensor | PackedSequence,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    *,
    batch_first: bool = False,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_hx: State | None = None,
    return_cells: bool = False,
    return_gates: bool = False,
    recompute: int = 0,
) -> tuple[Any, ...]:
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
        lengths: ``[B]``, any integer dtype, on any device, in any order: the live steps of each row
            of padded input. Only those are computed; the output beyond is zero, ``h_n`` and ``c_n``
            are those of the last live step, and a length of 0 gives back the initial state. That
            none is beyond T is checked where the CPU's kernels run, elsewhere it would have to wait
            for the device.
        reset: ``[T, B]`` (``[B, T]`` with ``batch_first``, ``[T]`` unbatched) bool: a row whose
            state is replaced before a step, as at the beginning of an episode. No state and no
            gradient passes there, in either direction of a bidirectional layer: a row is cut before
            each marked step, as if its pieces were sequences of their own. ``hx`` goes into the
            piece where a direction begins (not where step 0 is marked), and ``h_n`` and ``c_n`` are
            of the piece where it ends.
        reset_hx: the state after a reset, shaped as ``hx`` or with 1 in the place of B, for example
            a learned one; None for zeros.
        return_cells: whether c of every step of the last layer is returned too, shaped as the
            output with H in the place of P. It has gradients.
        return_gates: likewise its activated gates i, f, g and o, with 4H in the place of P, the
            gates of a direction next to each other. They have no gradients. Cells and gates beyond
            a length are zero.
        recompute: k > 0 keeps c of every k-th step only for backward, which computes the gates of k
            steps at once again: memory for time, the same gradients to the last bit. It is of no
            effect for a layer whose cells or gates are returned, and on devices other than CPUs.

    Returns:
        ``output`` shaped as the input with ``D*P`` features, and ``(h_n, c_n)`` shaped as ``hx``;
        then cells and gates, those that are asked for.
        All of the input's dtype: float32, float64, bfloat16 or float16. Products of float32 on a
        CPU are as precise as ``torch.backends.mkldnn.rnn.fp32_precision`` asks when they run: in
        backward, and in a compiled or exported program, as it is then.

    Raises:
        TypeError: for a mask that is not bool, lengths of no integer dtype, recompute that is no
            int, and None in ``hx``.
        ValueError: for ``reset_hx`` without ``reset``, and for one that is not two tensors of as
            many dimensions as ``hx``, of L*D layers and 1 or B rows; for lengths and resets of
            packed input, lengths of unbatched input, and a negative recompute.
        ValueError, RuntimeError: for shapes, dtypes or devices that do not fit: what
            ``torch.nn.LSTM`` of the running release raises, where it does.
    """
    if not training:
        dropout = 0.0
    args = (input, hx, params, batch_first, bidirectional, dropout)
    run = call = None
    masked = lengths is not None or reset is not None or reset_hx is not None
    if masked or return_cells or return_gates or recompute:
        call = SequenceCall(lengths, reset, reset_hx, return_cells, return_gates, recompute)
        call.check(input, batch_first, len(params))
        run = functools.partial(_sequences, call)
    try:
        results = _call(run, *args)
        return results if call is None else call.results(*results)
    except RuntimeError as error:
        if torch.compiler.is_compiling():
            raise
        x = input.data if isinstance(input, PackedSequence) else input
        reason = _ops.unknown_class(error, x, *params[0])
        if reason is None:
            raise refusal_of_layer(error, *args[:5]) from None
    _ops.warn_fallback(reason)
    if call is None:
        return _call(_reference, *args)
    call.by_reference = True
    return call.results(*_call(run, *args))


def _call(
    run: Run | None,
    input: Tensor | PackedSequence,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    batch_first: bool,
    bidirectional: bool,
    dropout: float,
) -> tuple[Tensor | PackedSequence, State]:
    """The layers by ``run``, or by what fits where it is None."""
    if hx is not None:
        if len(hx) != 2:
            raise RuntimeError("lstm expects two hidden states")
        if hx[0] is None or hx[1] is None:
            raise TypeError(HALF_A_STATE)
    if isinstance(input, PackedSequence):
        return _packed(run, input, hx, params, bidirectional, dropout)
    return _dense(run, input, hx, params, batch_first, bidirectional, dropout)


def _dense(
    run: Run | None,
    input: Tensor,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    batch_first: bool,
    bidirectional: bool,
    dropout: float,
) -> tuple[Tensor, State]:
    dims = input.dim()
    if dims == 3:
        x = _time_first(input) if batch_first else input
    elif dims == 2:
        x = input.unsqueeze(1)
        hx = None if hx is None else tuple(state.unsqueeze(1) for state in hx)
    else:
        raise RuntimeError(f"LSTM: Expected input to be 2D or 3D, got {dims}D instead")
    if x.shape[0] == 0:
        raise RuntimeError(NO_STEPS)
    y, h_n, c_n = _layers(run, x, None, hx, params, bidirectional, dropout)
    if dims == 2:
        return y.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
    return y.transpose(0, 1) if batch_first else y, (h_n, c_n)


def _time_first(x: Tensor) -> Tensor:
    """``x [B, T, I]`` as ``[T, B, I]``."""
    x = x.transpose(0, 1)
    if torch.compiler.is_compiling() or not x.is_inference():
        return x
    # What was made under inference_mode cannot be saved for backward. nn.LSTM takes it where it
    # copies its input, which is here.
    recorded = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    return x.clone() if recorded else x


def _packed(
    run: Run | None,
    input: PackedSequence,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    bidirectional: bool,
    dropout: float,
) -> tuple[PackedSequence, State]:
    x, batch_sizes, sorted_indices, unsorted_indices = input
    if hx is not None and sorted_indices is not None:
        for state in hx:
            if state.dim() != 3 or state.shape[1] != sorted_indices.shape[0]:
                raise RuntimeError(
                    f"expected hx of {sorted_indices.shape[0]} sequences, got {list(state.shape)}"
                )
        hx = tuple(state.index_select(1, sorted_indices) for state in hx)
    if hx is None and sorted_indices is not None and torch.compiler.is_compiling():
        # Tracing cannot read B in batch_sizes.
        hx = fallback.zero_state(x, sorted_indices.shape[0], params)
    y, h_n, c_n = _layers(run, x, batch_sizes, hx, params, bidirectional, dropout)
    if unsorted_indices is not None:
        h_n, c_n = h_n.index_select(1, unsorted_indices), c_n.index_select(1, unsorted_indices)
    return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), (h_n, c_n)


def _layers(
    run: Run | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    bidirectional: bool,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``x [T, B, I]`` or packed ``[N, I]`` through all layers, under autocast or not."""
    dtype = autocast_dtype(x)
    if run is None:
        run = _fused
        reason = _ops.unavailable(x.device, params[0][0].dtype if dtype is None else dtype)
        if reason is not None:
            run = _without_op(reason)
    if dtype is None:
        return run(x, batch_sizes, hx, params, bidirectional, dropout)
    c_dtype = state_dtype(x, None if hx is None else hx[1], dtype)
    projected = len(params[0]) in (3, 5)
    by_onednn = batch_sizes is None and not projected and x.dtype != torch.float16
    if by_onednn and c_dtype != torch.float64 and x.numel() > 0:
        c_dtype = dtype  # all operands are cast
    y, h_n, c_n = run(
        autocast(x, dtype),
        batch_sizes,
        None if hx is None else (autocast(hx[0], dtype), autocast(hx[1], dtype)),
        [[autocast_weight(p, dtype) for p in group] for group in params],
        bidirectional,
        dropout,
    )
    y_dtype = y.dtype if projected else c_dtype
    return y.to(y_dtype), h_n.to(y_dtype), c_n.to(c_dtype)


def _fused(
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    bidirectional: bool,
    dropout: float,
    layer: Run = lstm_layer,
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer after layer, with dropout on the output of every layer but the last."""
    h0, c0 = (None, None) if hx is None else hx
    reverse = FORWARD
    if bidirectional:
        reverse = BOTH
        params = [[*params[k], *params[k + 1]] for k in range(0, len(params), 2)]
    if len(params) == 1:
        return layer(x, batch_sizes, h0, c0, params[0], reverse)
    h0s = c0s = [None] * len(params)
    if hx is not None:
        h0s, c0s = h0.split(len(reverse)), c0.split(len(reverse))
        if len(h0s) != len(params) or len(c0s) != len(params):
            raise RuntimeError(
                f"expected the states of {len(params)} layers, got {len(h0s)} and {len(c0s)}"
            )
    h_ns, c_ns = [], []
    for k, weights in enumerate(params):
        if k > 0 and dropout > 0:
            x = torch.dropout(x, dropout, True)
        x, h_n, c_n = layer(x, batch_sizes, h0s[k], c0s[k], weights, reverse)
        h_ns.append(h_n)
        c_ns.append(c_n)
    return x, torch.cat(h_ns), torch.cat(c_ns)


def _sequences(
    call: SequenceCall,
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    *args: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer after layer as the call asks, by the ops or by what PyTorch has."""
    reason = None if call.by_reference else _ops.unavailable(x.device, params[0][0].dtype)
    if reason is not None:
        run = _without_op(reason)
        if call.is_plain:
            return run(x, batch_sizes, hx, params, *args)
        call.by_reference = True
    return _fused(x, batch_sizes, hx, params, *args, layer=call.layers(x, len(params)))


def _without_op(reason: str) -> Run:
    """What runs all layers where the op does not, for this reason."""
    _ops.warn_fallback(reason)
    return _reference if _transforms.transformed() else fallback.lstm


def _reference(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fused(*args, layer=reference.lstm_layer)
