"""What ``torch.fx`` and ``torch.jit.script`` find in the place of PyTorch's own layers."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn
from torch.fx import Proxy, _symbolic_trace
from torch.utils._pytree import tree_leaves

# Older releases have one function only, which is also true while torch.compile traces.
_is_tracing = getattr(_symbolic_trace, "is_fx_symbolic_tracing", _symbolic_trace.is_fx_tracing)


def call_or_leaf(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``_call_impl`` of a layer that ``torch.fx`` takes whole, as it takes PyTorch's own.

    Here and not in ``forward``, around which hooks run: recorded in the graph, they would run
    again when the graph calls the layer.
    """
    if _is_tracing():
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Proxy):
                path = given.tracer.path_of_module(self)
                return given.tracer.create_proxy("call_module", path, args, kwargs)
    return nn.Module._call_impl(self, *args, **kwargs)


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
