"""What arguments must be, and refusals in the words of the ``torch.nn`` that is running.

The ops check what they are given. Where one refuses, or Python sees what no op would, the checks of
PyTorch's own layer run on the same arguments to say it: its words and the kinds of its exceptions
change between releases. Only its checks: past them it may crash on such arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fused_lstm._autocast import autocast_dtype

State = tuple[Tensor, Tensor]
NO_STEPS = "Expected sequence length to be larger than 0 in RNN"  # as torch.nn.LSTM says
HALF_A_STATE = "expected hx of two tensors, got None in the place of one: pass hx=None for zeros"


def pair(states: Any, expected: str, kind: type = Tensor) -> tuple[Any, Any]:
    """``(h, c)``: a tensor is not taken apart, as one of two layers could be.

    Raises:
        ValueError: for anything but a tuple or list of two of this kind.
    """
    if not isinstance(states, (tuple, list)):
        got = type(states).__name__
    elif len(states) != 2:
        got = f"{len(states)} of them"
    elif all(isinstance(state, kind) and state is not None for state in states):
        return states[0], states[1]
    else:
        got = " and ".join(type(state).__name__ for state in states)
    raise ValueError(f"expected {expected}, got {got}")


def check_shapes(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    groups: int,
    per_direction: int,
    batch: int | torch.SymInt | None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
) -> None:
    """What csrc/checks.cpp refuses, for where it does not run.

    Args:
        x: dense ``[T, B, I]``, or packed ``[N, I]``.
        h0: ``[groups, B, P]`` or None.
        c0: ``[groups, B, H]`` or None.
        weights: ``w_ih [4H, I]``, ``w_hh [4H, P]`` and so on of the first layer.
        groups: layers times directions, or directions.
        per_direction: how many weights there are of each direction: 2, and 2 biases, and w_hr.
        batch: B; None where x is packed and tracing cannot see it.
        reset_h: ``[groups, B, P]`` or None.
        reset_c: ``[groups, B, H]`` or None.

    Raises:
        RuntimeError: if something does not fit.
    """
    gates, size = weights[1].shape
    hidden = gates // 4
    expected = [("w_ih", (gates, x.shape[-1])), ("w_hh", (gates, size))]
    if per_direction > 3:
        expected += [("b_ih", (gates,)), ("b_hh", (gates,))]
    if per_direction % 2 == 1:
        expected.append(("w_hr", (size, hidden)))
    given = [(t, *expected[k % per_direction]) for k, t in enumerate(weights)]
    h_shape = None if batch is None else (groups, batch, size)
    c_shape = None if batch is None else (groups, batch, hidden)
    states = ("h0", h0, h_shape), ("c0", c0, c_shape)
    if reset_h is not None or reset_c is not None:
        states += ("reset_h", reset_h, h_shape), ("reset_c", reset_c, c_shape)
    given += [(t, name, shape) for name, t, shape in states if t is not None]
    dtype, device = x.dtype, x.device
    for t, name, shape in given:
        if t.shape != shape and shape is not None:
            raise RuntimeError(
                f"fused_lstm: expected {name} of shape {list(shape)}, got {list(t.shape)}"
            )
        if t.dtype != dtype or t.device != device:
            raise RuntimeError(
                f"fused_lstm: expected {dtype} on {device} as x, got {t.dtype} on {t.device}"
            )


def refusal_of_layer(
    error: Exception,
    input: Tensor | PackedSequence,
    hx: State | None,
    params: Sequence[Sequence[Tensor]],
    batch_first: bool,
    bidirectional: bool,
) -> Exception:
    """What ``torch.nn.LSTM`` raises for a call; ``error`` where its checks raise nothing."""
    try:
        layer = _layer_of(params, batch_first, bidirectional)
    except Exception:  # no layer has such weights
        return error
    packed = isinstance(input, PackedSequence)
    try:
        if not packed:
            layer(input, hx)
        elif hx is None:
            layer.check_input(input.data, input.batch_sizes)
        else:
            layer.check_forward_args(input.data, hx, input.batch_sizes)
    except _Passed:
        pass
    except Exception as theirs:
        return theirs
    x = input.data if packed else input
    return _difference(x, "parameter", params[0]) or _difference(x, "hidden", hx) or error


class _Passed(Exception):
    """Nothing was wrong."""


class _Checks(nn.LSTM):
    """``nn.LSTM`` up to where it would compute."""

    def reset_parameters(self) -> None:
        """Draw no random numbers, which ``vmap`` may refuse."""

    def check_forward_args(self, *args: Any) -> None:
        super().check_forward_args(*args)
        raise _Passed


def _layer_of(
    params: Sequence[Sequence[Tensor]], batch_first: bool, bidirectional: bool
) -> _Checks:
    """A layer of PyTorch's over these weights."""
    (gates, input_size), proj_size = params[0][0].shape, params[0][1].shape[1]
    layer = _Checks(
        input_size,
        gates // 4,
        len(params) // (2 if bidirectional else 1),
        bias=len(params[0]) > 3,
        batch_first=batch_first,
        bidirectional=bidirectional,
        proj_size=proj_size if len(params[0]) % 2 else 0,
        device="meta",
    )
    layer._flat_weights = [p for group in params for p in group]
    return layer


class _Cell(nn.LSTMCell):
    """``nn.LSTMCell`` for its checks."""

    def reset_parameters(self) -> None:
        """Draw no random numbers, which ``vmap`` may refuse."""


def refusal_of_cell(
    error: Exception, input: Tensor, hx: State | None, weights: Sequence[Tensor]
) -> Exception:
    """What ``torch.nn.LSTMCell`` raises for a call; ``error`` where it raises nothing."""
    states = () if hx is None else hx
    gates, input_size = weights[0].shape
    for k, state in enumerate(states):
        if _fits_by_accident(input, state, gates // 4):
            return RuntimeError(
                f"hidden{k} must have {input.dim()} dimensions as the input, got {state.dim()}"
            )
    if found := _difference(input, "parameter", weights) or _difference(input, "hidden", states):
        return found
    cell = _Cell(input_size, gates // 4, bias=len(weights) > 2, device="meta")
    try:
        with torch.no_grad():
            cell(_shape_of(input), None if hx is None else tuple(map(_shape_of, hx)))
    except Exception as theirs:
        return theirs
    return error


def _shape_of(t: Tensor) -> Tensor:
    """Without values, which a transform may have wrapped and autocast would cast."""
    return torch.empty(t.shape, device="meta")


def _fits_by_accident(input: Tensor, state: Tensor, hidden_size: int) -> bool:
    """Whether ``nn.LSTMCell`` lets a state of the wrong rank pass, and may crash on it."""
    if input.dim() == 1:
        return state.dim() == 2 and state.shape[0] == hidden_size
    return state.dim() == 1 and state.shape[0] == input.shape[0]


def _difference(x: Tensor, name: str, tensors: Sequence[Tensor] | None) -> RuntimeError | None:
    """What PyTorch says of tensors on another device than the input, or of another dtype.

    Autocast makes one dtype of several: under it they say nothing.
    """
    same_dtype = autocast_dtype(x) is None
    for t in () if tensors is None else tensors:
        if t.device != x.device:
            return RuntimeError(
                f"Input and {name} tensors are not at the same device, "
                f"found input tensor at {x.device} and {name} tensor at {t.device}"
            )
        if same_dtype and t.dtype != x.dtype:
            return RuntimeError(
                f"Input and {name} tensors are not the same dtype, "
                f"found input tensor with {x.dtype} and {name} tensor with {t.dtype}"
            )
    return None
