"""Which of PyTorch's transforms are active around a call, asked of PyTorch itself.

Nothing of this is public in PyTorch. Where a release lacks what is needed to place a derivative at
its level of ``torch.func``, derivatives there go through the reference: right, and slower. Where it
does not even say that a transform is active, PyTorch itself refuses to apply the functions of
``autograd.py`` under one: nothing is silent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad

try:
    from torch._C import _AutoDispatchBelowAutograd
    from torch._C._functorch import get_interpreter_stack, is_legacy_batchedtensor
    from torch._functorch.utils import (
        enable_single_level_autograd_function,
        unwrap_dead_wrappers,
    )
    from torch.autograd.function import _SingleLevelFunction
except ImportError:
    get_interpreter_stack = None

    def is_legacy_batchedtensor(tensor: torch.Tensor) -> bool:
        """Unknown, so that the call fails in PyTorch's words."""
        return False

    def unwrap_dead_wrappers(args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Left to the operations that meet them."""
        return args


try:
    from torch._C._functorch import _add_batch_dim, _unwrap_batched, peek_interpreter_stack
except ImportError:
    peek_interpreter_stack = None

# torch.compile looks at every Python frame that runs between the graphs it has compiled; some are
# parts of ops, and none of its business.
untraced = getattr(torch, "_disable_dynamo", lambda function: function)

# Whether a transform of ``torch.func`` is active.
func_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def forward_mode() -> bool:
    """Whether a level of forward-mode AD is active."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def transformed() -> bool:
    """Whether a transform of ``torch.func`` or a level of forward-mode AD is active."""
    return func_active() or forward_mode()


def stack() -> tuple[str, ...]:
    """Names of the active transforms of ``torch.func``, outermost first.

    They are "Grad", "Vmap", "Jvp" and "Functionalize"; "Unknown" where they cannot be had.
    """
    if not func_active():
        return ()
    if get_interpreter_stack is None:
        return ("Unknown",)
    return tuple(transform.key().name for transform in get_interpreter_stack())


def depth() -> int:
    """How many transforms of ``torch.func`` are active."""
    return len(stack())


def only_mapped() -> bool:
    """Whether ``vmap`` is all that is active, once or several times, or nothing is.

    torch.compile knows whether there are transforms, and not which: then, whether nothing is.
    """
    if torch.compiler.is_compiling():
        return not transformed()
    return not forward_mode() and set(stack()) <= {"Vmap"}


def covered() -> bool:
    """Whether the fused functions give the derivative here: of one grad, and any vmap around it.

    Forward mode and derivatives of derivatives go through the reference, whose operations PyTorch
    transforms by itself.
    """
    if forward_mode():
        return False
    names = stack()
    if not names:
        return True
    return set(names) <= {"Grad", "Vmap"} and names.count("Grad") <= 1


@functools.cache
def _of_one_level(function: type[torch.autograd.Function]) -> type:
    members = {
        name: staticmethod(getattr(function, name))
        for name in ("forward", "setup_context", "backward")
    }
    return type(function.__name__, (_SingleLevelFunction,), members)


def apply_at_level(function: type[torch.autograd.Function], *args: Any) -> tuple[Any, ...]:
    """``function.apply(*args)`` in a kernel of the dispatcher: for the level of it alone."""
    with enable_single_level_autograd_function():
        return _of_one_level(function).apply(*args)


@contextmanager
def _recording_below() -> Iterator[None]:
    with torch.enable_grad(), _AutoDispatchBelowAutograd():
        yield


def below_this_level() -> AbstractContextManager:
    """For the ``forward`` of such a function, which runs without recording.

    The levels below this one, and plain autograd below them all, may have a derivative of their
    own to record.
    """
    if not func_active():
        return nullcontext()
    return _recording_below()


def any_legacy_batched(*tensors: torch.Tensor | None) -> bool:
    """Whether ``torch.autograd`` itself maps over one (``is_grads_batched``, ``vectorize``)."""
    for t in tensors:  # noqa: SIM110 (any() takes twice the time)
        if t is not None and is_legacy_batchedtensor(t):
            return True
    return False


def register_vmap(library: torch.library.Library, name: str, rule: Callable[..., Any]) -> None:
    """Let ``vmap`` compute the op ``fused_lstm::name`` by ``rule(size, in_dims, *args)``.

    It takes the number of members, the mapped dimension of each argument (None for those that are
    not mapped, a list for a list of tensors) and the arguments, and returns outputs and their
    dimensions. This is ``torch.library.register_vmap`` without its walks over arguments as trees,
    which take 0.1 ms a call: as long as a small layer does.
    """
    op = getattr(torch.ops.fused_lstm, name).default
    if peek_interpreter_stack is None:
        torch.library.register_vmap(
            op, lambda info, in_dims, *args: rule(info.batch_size, in_dims, *args)
        )
        return

    def kernel(*args: Any) -> Any:
        level = peek_interpreter_stack().level()
        values, dims, sizes = [], [], []

        def unwrap(arg: Any) -> tuple[Any, int | None]:
            if not isinstance(arg, torch.Tensor):
                return arg, None
            value, dim = _unwrap_batched(arg, level)
            if dim is not None:
                sizes.append(value.shape[dim])
            return value, dim

        for arg in args:
            if isinstance(arg, (list, tuple)):
                pairs = [unwrap(each) for each in arg]
                value, dim = [value for value, _ in pairs], [dim for _, dim in pairs]
            else:
                value, dim = unwrap(arg)
            values.append(value)
            dims.append(dim)
        below = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchBatched)
        with torch._C._ExcludeDispatchKeyGuard(below):
            if not sizes:
                return op(*values)
            outputs, out_dims = rule(sizes[0], dims, *values)
        return _mapped(outputs, out_dims, level)

    library.impl(name, untraced(kernel), "FuncTorchBatched")


def _mapped(outputs: Sequence[Any], dims: Sequence[int | None], level: int) -> Sequence[Any]:
    """The outputs as this level's, in a tuple or list as they are."""
    return type(outputs)(
        t if dim is None else _add_batch_dim(t, dim, level)
        for t, dim in zip(outputs, dims, strict=True)
    )
