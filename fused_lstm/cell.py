"""``fused_lstm.LSTMCell``: one step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_lstm._autocast import autocast, autocast_dtype, state_dtype
from fused_lstm._checks import State, check_cell_hidden, check_same
from fused_lstm.autograd import lstm_layer


class LSTMCell(torch.nn.RNNCellBase):
    """A drop-in for ``torch.nn.LSTMCell``: the same arguments, parameters, results and errors.

    Args:
        input_size: features of the input.
        hidden_size: features of the state, H.
        bias: whether there are ``b_ih`` and ``b_hh``.
        device: of the parameters.
        dtype: of the parameters: float32, float64, bfloat16 or float16.
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
            ValueError, RuntimeError: for shapes, dtypes or devices that do not fit, in the words
                of ``torch.nn.LSTMCell`` where it has any.
        """
        dims = input.dim()
        if dims not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {dims}D instead")
        if hx is not None:
            for k, state in enumerate(hx):
                if state.dim() not in (1, 2):
                    raise ValueError(
                        f"LSTMCell: Expected hx[{k}] to be 1D or 2D, got {state.dim()}D instead"
                    )
        if dims == 2:
            return self._step(input, hx)
        if hx is not None:
            hx = (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = self._step(input.unsqueeze(0), hx)
        return h.squeeze(0), c.squeeze(0)

    def _step(self, x: Tensor, hx: State | None) -> State:
        weights = [self.weight_ih, self.weight_hh]
        if self.bias_ih is not None:
            weights += [self.bias_ih, self.bias_hh]
        if x.shape[1] != weights[0].shape[1]:
            raise RuntimeError(
                f"input has inconsistent input_size: got {x.shape[1]} "
                f"expected {weights[0].shape[1]}"
            )
        if hx is not None:
            check_cell_hidden(x, hx, weights[1].shape[1])

        out_dtype = None
        dtype = autocast_dtype(x)
        if dtype is not None:
            out_dtype = state_dtype(x, None if hx is None else hx[1], dtype)
            x = autocast(x, dtype)
            hx = None if hx is None else (autocast(hx[0], dtype), autocast(hx[1], dtype))
            weights = [autocast(w, dtype) for w in weights]

        check_same(x, "parameter", weights[0])
        h0 = c0 = None
        if hx is not None:
            check_same(x, "hidden", *hx)
            h0, c0 = hx[0].unsqueeze(0), hx[1].unsqueeze(0)
        _, h, c = lstm_layer(x.unsqueeze(0), None, h0, c0, weights, [False])
        h, c = h.squeeze(0), c.squeeze(0)
        return (h, c) if out_dtype is None else (h.to(out_dtype), c.to(out_dtype))
