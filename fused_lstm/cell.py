"""``fused_lstm.LSTMCell``: one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fused_lstm import _ops, _transforms, fallback, reference
from fused_lstm._autocast import autocast, autocast_dtype, autocast_weight, state_dtype
from fused_lstm._checks import HALF_A_STATE, State, refusal_of_cell
from fused_lstm._tracing import call_or_leaf, refuse_script
from fused_lstm.autograd import FORWARD, lstm_layer

# What nn.LSTMCell says, whose op takes a tuple.
_NO_TUPLE = "lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not Tensor"

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class LSTMCell(torch.nn.RNNCellBase):
    """A drop-in for ``torch.nn.LSTMCell``: the same arguments, parameters, results and errors.

    Args:
        input_size: features of the input.
        hidden_size: features of the state, H.
        bias: whether there are ``b_ih`` and ``b_hh``.
        device: of the parameters.
        dtype: of the parameters: float32, float64, bfloat16 or float16.

    Raises:
        TypeError, RuntimeError: what ``torch.nn.LSTMCell`` of the running release raises for sizes
            that are no int or negative, and for a dtype without gradients.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """One step of ``input [B, I]`` or ``[I]`` from ``hx``, two of ``[B, H]`` or ``[H]``.

        Returns ``(h, c)``, shaped as ``hx``; None for ``hx`` means zeros.

        Raises:
            TypeError: for None in ``hx``, and for one tensor in its place.
            ValueError, RuntimeError: for shapes, dtypes or devices that do not fit: what
                ``torch.nn.LSTMCell`` of the running release raises, where it does.
        """
        weights = self._weights()
        try:
            return _step(input, hx, weights)
        except RuntimeError as error:
            if torch.compiler.is_compiling():
                raise
            reason = _ops.unknown_class(error, input, *weights)
            if reason is None:
                raise refusal_of_cell(error, input, hx, weights) from None
        _ops.warn_fallback(reason)
        return _step(input, hx, weights, by_reference=True)

    def _weights(self) -> list[Tensor]:
        """The weights there are, looked up by name in each call as those of ``LSTM``."""
        try:
            found = list(map(self._parameters.__getitem__, _NAMES))
        except KeyError:  # parametrized
            found = [getattr(self, name) for name in _NAMES]
        b_ih, b_hh = found[2:]
        if b_ih is None and b_hh is None:
            return found[:2]
        if b_ih is None or b_hh is None:  # nn.LSTMCell adds the one there is
            there = b_hh if b_ih is None else b_ih
            return [*found[:2], there, torch.zeros_like(there)]
        return found

    _call_impl = call_or_leaf
    __prepare_scriptable__ = refuse_script


def _step(
    input: Tensor, hx: State | None, weights: list[Tensor], by_reference: bool = False
) -> State:
    batched = input.dim() == 2
    if not batched and input.dim() != 1:
        raise RuntimeError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
    h0 = c0 = None
    if hx is not None:
        if batched and isinstance(hx, Tensor):
            raise TypeError(_NO_TUPLE)
        if len(hx) != 2:
            raise RuntimeError("lstm_cell expects two hidden states")
        h0, c0 = hx
        if h0 is None or c0 is None:
            raise TypeError(HALF_A_STATE)
        if not batched:
            h0, c0 = h0.unsqueeze(0), c0.unsqueeze(0)
    x = input if batched else input.unsqueeze(0)
    h, c = _batched_step(x, h0, c0, weights, by_reference)
    return (h, c) if batched else (h.squeeze(0), c.squeeze(0))


def _batched_step(
    x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor], by_reference: bool
) -> State:
    """``x [B, I]``, ``h0`` and ``c0 [B, H]``, under autocast or not."""
    dtype = autocast_dtype(x)
    run = _by_reference
    if not by_reference:
        run = _fused
        reason = _ops.unavailable(x.device, weights[0].dtype if dtype is None else dtype)
        if reason is not None:
            _ops.warn_fallback(reason)
            run = _by_reference if _transforms.transformed() else fallback.lstm_cell
    if dtype is None:
        return run(x, h0, c0, weights)
    out_dtype = state_dtype(x, c0, dtype)
    x, h0, c0 = (None if t is None else autocast(t, dtype) for t in (x, h0, c0))
    h, c = run(x, h0, c0, [autocast_weight(w, dtype) for w in weights])
    return h.to(out_dtype), c.to(out_dtype)


def _fused(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor]) -> State:
    if torch.compiler.is_compiling():
        return _one_step(lstm_layer, x, h0, c0, weights)
    return _ops.lstm_cell(x, h0, c0, weights)


def _by_reference(x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: list[Tensor]) -> State:
    return _one_step(reference.lstm_layer, x, h0, c0, weights)


def _one_step(
    layer: Callable[..., tuple[Tensor, Tensor, Tensor]],
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
) -> State:
    h0, c0 = (None if t is None else t.unsqueeze(0) for t in (h0, c0))
    _, h, c = layer(x.unsqueeze(0), None, h0, c0, weights, FORWARD)
    return h.squeeze(0), c.squeeze(0)
