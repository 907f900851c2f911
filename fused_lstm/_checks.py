"""What arguments must be, in the words of ``torch.nn.LSTM`` where it has any."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

State = tuple[Tensor, Tensor]


def check_input(x: Tensor, dims: int, w_ih: Tensor) -> None:
    """``x`` must be ``[T, B, I]`` or packed ``[N, I]``, with the dtype and device of ``w_ih``."""
    if x.dtype != w_ih.dtype:
        raise ValueError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({w_ih.dtype}). "
            f"Convert input: input.to({w_ih.dtype}), or convert model: model.to({x.dtype})"
        )
    shape, input_size = x.shape, w_ih.shape[1]
    if len(shape) != dims:
        raise RuntimeError(f"input must have {dims} dimensions, got {len(shape)}")
    if shape[-1] != input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {input_size}, got {shape[-1]}"
        )
    if shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if x.device != w_ih.device:
        raise RuntimeError(_not_the_same("device", x.device, "parameter", w_ih.device))


def check_hidden(hx: State, batch: int, params: Sequence[Sequence[Tensor]]) -> None:
    """``hx`` must have one state per group of ``params``, that is, per layer and direction."""
    gates, proj = params[0][1].shape
    expected = ((len(params), batch, proj), (len(params), batch, gates // 4))
    for k in (0, 1):
        if hx[k].shape != expected[k]:
            raise RuntimeError(f"Expected hidden[{k}] size {expected[k]}, got {list(hx[k].shape)}")


def check_cell_hidden(x: Tensor, hx: State, hidden_size: int) -> None:
    """``hx`` must be two of ``[B, H]`` for ``x [B, I]``."""
    if len(hx) != 2:
        raise RuntimeError("lstm_cell expects two hidden states")
    for k, state in enumerate(hx):
        shape = state.shape
        if shape[0] != x.shape[0]:
            raise RuntimeError(
                f"Input batch size {x.shape[0]} doesn't match hidden{k} batch size {shape[0]}"
            )
        if len(shape) == 1:
            raise RuntimeError(f"hidden{k} must have 2 dimensions for a batched input, got 1")
        if shape[1] != hidden_size:
            raise RuntimeError(
                f"hidden{k} has inconsistent hidden_size: got {shape[1]}, expected {hidden_size}"
            )
        if len(shape) == 3:
            raise RuntimeError(f"hidden{k} must have 1 dimension for an unbatched input, got 2")


def check_same(x: Tensor, name: str, *tensors: Tensor) -> None:
    """Tensors must have the device and dtype of the input."""
    device, dtype = x.device, x.dtype
    for t in tensors:
        if t.device != device:
            raise RuntimeError(_not_the_same("device", device, name, t.device))
        if t.dtype != dtype:
            raise RuntimeError(_not_the_same("dtype", dtype, name, t.dtype))


def _not_the_same(what: str, wanted: object, name: str, found: object) -> str:
    if what == "device":
        return (
            f"Input and {name} tensors are not at the same device, "
            f"found input tensor at {wanted} and {name} tensor at {found}"
        )
    return (
        f"Input and {name} tensors are not the same dtype, "
        f"found input tensor with {wanted} and {name} tensor with {found}"
    )
