"""What ``torch.autocast`` does to ``torch.nn.LSTM``, done by hand: the ops know nothing of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import Parameter

from fused_lstm import _ops, _transforms


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on the device of ``x``; None where it is off."""
    if not torch._C._is_any_autocast_enabled():
        return None
    device_type = x.device.type
    if not _knows_autocast(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def _knows_autocast(device_type: str) -> bool:
    # torch 2.10 cannot compile the question, so it is asked of other devices only
    return device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)


def autocast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Autocast leaves float64 and everything that is not floating point alone."""
    eligible = t.is_floating_point() and t.dtype != torch.float64
    return t.to(dtype) if eligible else t


def autocast_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The same, but a parameter only once for all calls inside the outermost ``torch.autocast``.

    That is how ``nn.LSTM`` casts: by PyTorch's cache, which ends with the region, since a change of
    a parameter may go unseen (``parameter.data`` has no version).
    """
    if _ops.extension is None or torch.compiler.is_compiling() or type(weight) is not Parameter:
        return autocast(weight, dtype)
    if _transforms.transformed():
        return autocast(weight, dtype)  # else later calls would get a tensor of this transform
    return _ops.extension.autocast_weight(weight, dtype)


def state_dtype(x: Tensor, c0: Tensor | None, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which PyTorch's own step-by-step LSTM keeps c under autocast.

    On the CPU it adds gates of autocast's dtype to the caller's c0 (zeros of the input's dtype
    where there is none), which gives the wider of the two; elsewhere everything is cast.
    """
    if x.device.type != "cpu":
        return dtype if x.dtype != torch.float64 else x.dtype
    return torch.promote_types(dtype, x.dtype if c0 is None else c0.dtype)


def without_autocast(device_type: str) -> AbstractContextManager:
    """Operands already have the dtype that is meant; some device types know no autocast."""
    if not torch._C._is_any_autocast_enabled() or not _knows_autocast(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
