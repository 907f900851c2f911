"""What ``torch.fx`` and ``torch.jit.script`` find in the place of PyTorch's own layers."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn
from torch.fx import Proxy


def leaf_call(module: nn.Module, input: Proxy, hx: Any, **options: Any) -> Proxy:
    """A call of the whole module in the graph, as ``torch.fx`` records PyTorch's layers.

    Of the options those that ask for something.
    """
    tracer = input.tracer
    args = (input,) if hx is None else (input, hx)
    given = {k: v for k, v in options.items() if v is not None and v is not False}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, given)


def refuse_script(module: nn.Module) -> NoReturn:
    """What ``torch.jit.script`` calls first.

    Raises:
        RuntimeError: always.
    """
    name = type(module).__name__
    raise RuntimeError(
        f"torch.jit.script cannot compile fused_lstm.{name}: it finds a torch.nn.{name} after "
        "fused_lstm.restore_lstm(model). torch.export and torch.jit.trace take it as it is"
    )
