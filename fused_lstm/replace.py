"""Swap the LSTMs of a model that exists already, and swap them back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fused_lstm.cell import LSTMCell
from fused_lstm.module import LSTM

_FUSED: dict[type, type] = {nn.LSTM: LSTM, nn.LSTMCell: LSTMCell}
_PLAIN: dict[type, type] = {fused: plain for plain, fused in _FUSED.items()}

Say = Callable[[str], object]


def replace_lstm(model: nn.Module, *, say: Say | None = print) -> nn.Module:
    """Turn every ``nn.LSTM`` and ``nn.LSTMCell`` of a model into the one of ``fused_lstm``.

    Each module changes its class in place and keeps everything it has: the parameters (an
    optimizer stays valid), hooks, training mode, its name, and whoever else refers to it. The
    model itself may be an LSTM.

    A subclass may rely on how ``nn.LSTM`` works inside, so subclasses are left alone and
    reported, and so are modules whose ``forward`` was replaced. Parametrized modules
    (``torch.nn.utils.parametrizations``) are swapped. ``torch.ao.quantization`` looks for
    ``torch.nn.LSTM`` and finds none afterwards: quantize first, then swap what is left; modules
    that are prepared for it are left alone.

    Args:
        model: the model, changed in place.
        say: called with one line per module that is swapped or left alone, and one of what has to
            come before; None for silence.

    Returns:
        ``model``.
    """
    before = [type(module) for module in model.modules()]
    _swap(model, _FUSED, say)
    if say is not None and before != [type(module) for module in model.modules()]:
        say("torch.ao.quantization will not see these: quantize first, or restore_lstm() before it")
    return model


def restore_lstm(model: nn.Module, *, say: Say | None = print) -> nn.Module:
    """Turn every LSTM of ``fused_lstm`` back into PyTorch's: the inverse of :func:`replace_lstm`.

    Args:
        model: the model, changed in place.
        say: called with one line per module that is swapped or left alone; None for silence.

    Returns:
        ``model``.
    """
    return _swap(model, _PLAIN, say)


def _swap(model: nn.Module, classes: dict[type, type], say: Say | None) -> nn.Module:
    say = say or (lambda line: None)
    for path, module in model.named_modules():  # a shared module comes once
        if not isinstance(module, tuple(classes)):
            continue
        name = path or "the model itself"
        old = type(module)
        new, reason = _counterpart(module, classes)
        if new is None:
            say(f"{name}: left as {_full_name(old)}: {reason}")
        else:
            module.__class__ = new
            if isinstance(module, nn.RNNBase):
                # nn.LSTM keeps its weights in a second list, fused_lstm.LSTM does not.
                vars(module).pop("_flat_weights", None)
                module._init_flat_weights()
            say(f"{name}: {_full_name(old)} -> {_full_name(new)}")
    return model


def _counterpart(module: nn.Module, classes: dict[type, type]) -> tuple[type | None, str]:
    """The class to give to the module; or None, and the reason why not."""
    cls = type(module)
    if "forward" in vars(module):
        return None, "its forward was replaced"
    if classes is _FUSED and getattr(module, "qconfig", None) is not None:
        return None, "it is prepared for quantization, which looks for PyTorch's own class"
    if cls in classes:
        return classes[cls], ""
    if torch.nn.utils.parametrize.is_parametrized(module) and cls.__bases__[0] in classes:
        # The class was made for this one module and holds a property per parametrized weight:
        # make the same on top of the other LSTM.
        members = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        return type(cls.__name__, (classes[cls.__bases__[0]],), members), ""
    return None, "a subclass may rely on how its base class works"


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
