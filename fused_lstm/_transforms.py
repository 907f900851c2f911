"""Which of PyTorch's function transforms are active around a call, asked of PyTorch itself.

Nothing of this is public in PyTorch. Where a release lacks the names imported here, every call
under a transform of ``torch.func`` goes through the reference: right, and slower.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd import forward_ad

try:
    from torch._C._functorch import TransformType, get_interpreter_stack
except ImportError:
    TransformType = get_interpreter_stack = None

try:
    from torch._functorch.utils import enable_single_level_autograd_function
except ImportError:
    enable_single_level_autograd_function = None

try:
    from torch._C._functorch import is_legacy_batchedtensor
except ImportError:

    def is_legacy_batchedtensor(tensor: torch.Tensor) -> bool:
        return False


def transformed() -> bool:
    """Whether a transform of ``torch.func`` or a level of forward-mode AD is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def stack() -> tuple[str, ...] | None:
    """Names of the active transforms of ``torch.func``, outermost first; None if unknown.

    They are "Grad", "Vmap", "Jvp" and "Functionalize".
    """
    if not torch._C._are_functorch_transforms_active():
        return ()
    if get_interpreter_stack is None:
        return None
    return tuple(transform.key().name for transform in get_interpreter_stack())


def covered() -> bool:
    """Whether the fused functions have rules for all that is active: any vmap, and one grad.

    Forward mode, second derivatives and functionalization go through the reference, whose
    operations PyTorch transforms by itself.
    """
    names = stack()
    if names is None or enable_single_level_autograd_function is None:
        return False
    if forward_ad._current_level >= 0:
        return False
    return set(names) <= {"Grad", "Vmap"} and names.count("Grad") <= 1


def at_one_level() -> AbstractContextManager:
    """For a kernel of the dispatcher: an ``autograd.Function`` belongs to the level at hand."""
    if not torch._C._are_functorch_transforms_active():
        return nullcontext()
    return enable_single_level_autograd_function()


def any_legacy_batched(*tensors: torch.Tensor | None) -> bool:
    """Whether ``torch.autograd`` itself maps over one (``is_grads_batched``, ``vectorize``)."""
    return any(t is not None and is_legacy_batchedtensor(t) for t in tensors)
