"""What ``vmap`` makes of the ops: the mapped dimension joins the batch, or that of an ensemble.

Inputs and states that are mapped over the same weights are one larger batch: one fused call, with
V rows in the place of each. Mapped weights are an ensemble of V problems: on the CPU one call too,
which runs them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fused_lstm import _ops, _transforms, per_sample

PLAIN = (Tensor, torch.nn.Parameter)  # what no tracer and no other transform looks at
Mapped = tuple[tuple[Tensor, ...], tuple[int | None, ...]]  # outputs, and where V lies in each


def members(
    function: Callable[..., tuple[Tensor, ...]],
    ensemble: Callable[..., tuple[Tensor, ...]] | None,
    size: int,
    in_dims: Sequence[int | None],
    args: Sequence[Any],
    *,
    lengths: int,
    weights: int,
    input: int | None = None,
    foldable: bool = True,
    recordable: bool = True,
) -> Mapped:
    """``function`` of ``args`` for each of ``size`` members.

    Args:
        function: runs one problem. Every tensor that it takes or returns has rows of the batch in
            its last dimension but one, other than ``batch_sizes`` and the weights.
        ensemble: runs V problems at once, of tensors with the members in front; ``batch_sizes`` has
            none. None where there is no such op: one after the other.
        size: V, the number of members.
        in_dims: the mapped dimension of each argument, or None.
        args: the arguments, tensors with a dimension of V where ``in_dims`` says so.
        lengths: where ``batch_sizes`` is in ``args``.
        weights: where the weights begin; they end with ``args``.
        input: where the input is, if ``function`` takes it as ``[T, B, V, I]`` too.
        foldable: whether shared weights allow one call: what comes back has a row per member.
        recordable: whether plain autograd may record a derivative of ``ensemble``.

    Raises:
        RuntimeError: for mapped ``batch_sizes``: members share the lengths of their sequences; and
            for no member at all.
    """
    if in_dims[lengths] is not None:
        raise RuntimeError(
            "vmap over batch_sizes: the members of a packed batch must share their lengths; padded "
            "input with lengths=... may have other lengths in each"
        )
    if size == 0:
        raise RuntimeError("vmap over an LSTM: expected at least one member, got none")
    if foldable and all(dim is None for dim in in_dims[weights:]):
        if input is not None and not reads_members(args, input):
            input = None
        return unfold(function(*fold(args, in_dims, size, lengths, weights, input)), size)
    at_once = not is_recorded(args) or (recordable and is_plain(args))
    if ensemble is None or not at_once or args[weights].device.type == "cuda":
        found = [function(*member(args, in_dims, k)) for k in range(size)]
        outputs = tuple(torch.stack(parts) for parts in zip(*found, strict=True))
    else:
        outputs = ensemble(*stacked(args, in_dims, size, lengths))
    return outputs, (0,) * len(outputs)


def member(args: Sequence[Any], in_dims: Sequence[int | None], k: int) -> list[Any]:
    """The arguments of member ``k``."""
    return [
        arg.select(dim, k) if isinstance(arg, Tensor) and dim is not None else arg
        for arg, dim in zip(args, in_dims, strict=True)
    ]


def stacked(
    args: Sequence[Any], in_dims: Sequence[int | None], size: int, lengths: int
) -> list[Any]:
    """The arguments with V in front of each tensor but ``batch_sizes``."""
    found = list(args)
    for k, (arg, dim) in enumerate(zip(args, in_dims, strict=True)):
        if isinstance(arg, Tensor) and k != lengths:
            found[k] = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
    return found


def reads_members(args: Sequence[Any], input: int) -> bool:
    """Whether the op reads the members of its input where they lie: in its CPU kernels, and where
    no derivative is recorded, which the reference would have to take of the same input.
    """
    x = args[input]
    return x.device.type == "cpu" and type(x) in PLAIN and not is_recorded(args)


def fold(
    args: Sequence[Any],
    in_dims: Sequence[int | None],
    size: int,
    lengths: int,
    weights: int,
    input: int | None = None,
) -> list[Any]:
    """Rows ``[..., B, F]`` become ``[..., B*V, F]``: the members of a row lie next to each other.

    So do they in packed input, whose steps keep their order with V times the rows. A padded
    ``input`` becomes ``[T, B, V, I]``, which copies nothing.
    """
    folded = list(args)
    for k, (arg, dim) in enumerate(zip(args[:weights], in_dims[:weights], strict=True)):
        if k == lengths:
            folded[k] = None if arg is None else arg * size
        elif isinstance(arg, Tensor):
            if dim is None:
                arg = arg.unsqueeze(-2).expand(*arg.shape[:-1], size, arg.shape[-1])
            else:
                arg = arg.movedim(dim, -2)
            folded[k] = arg if k == input and arg.dim() == 4 else arg.flatten(-3, -2)
    return folded


def unfold(outputs: Sequence[Tensor], size: int) -> Mapped:
    """The inverse of :func:`fold` for results, as views.

    The gradient of an input ``[T, B, V, I]`` has its shape.
    """

    def members_of(t: Tensor) -> Tensor:
        # As unflatten(), which takes several times as long.
        *leading, rows, features = t.shape
        return t.view(*leading, rows // size, size, features)

    unfolded = tuple(t if t.dim() == 4 else members_of(t) for t in outputs)
    return unfolded, tuple(t.dim() - 2 for t in unfolded)


def backward_members(
    size: int,
    in_dims: Sequence[int | None],
    args: Sequence[Any],
    reverse: Sequence[bool],
    needs: Sequence[bool],
) -> Mapped:
    """The gradients that are needed, for each of ``size`` members.

    Args:
        size: V, the number of members.
        in_dims: the mapped dimension of each argument, or None.
        args: ``grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0, y, gates, c, *weights``, tensors
            with a dimension of V where ``in_dims`` says so.
        reverse: one flag per direction: whether it walks time backwards.
        needs: one flag for x, h0, c0 and each weight.
    """

    def needed(op: Callable[..., list[Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
        def run(*args: Any) -> tuple[Tensor, ...]:
            grads = op(*args[:7], args[10:], reverse, *args[7:10], needs)
            return tuple(grad for grad, need in zip(grads, needs, strict=True) if need)

        return run

    places = dict(lengths=4, weights=10)
    shared = all(dim is None for dim in in_dims[10:])
    own_gradients = shared and any(needs[3:])
    if own_gradients and not is_recorded(args):
        folded = fold(args, in_dims, size, **places)
        call = per_sample.Backward(*folded[:7], args[10:], reverse, *folded[7:10])
        *rows, weights = per_sample.gradients(call, size, needs)
        rows, dims = unfold([t for t in rows if t is not None], size)
        return (*rows, *weights), (*dims, *[0] * len(weights))
    return members(
        needed(_ops.lstm_layer_backward),
        needed(_ops.lstm_ensemble_backward),
        size,
        in_dims,
        args,
        input=3,
        foldable=not own_gradients,
        recordable=False,
        **places,
    )


def is_transformed() -> bool:
    """Whether something other than plain autograd is below this vmap."""
    return _transforms.depth() > 1 or _transforms.forward_mode()


def is_plain(args: Sequence[Any]) -> bool:
    """Whether plain autograd alone is below this vmap, on tensors that no tracer looks at."""
    return not is_transformed() and all(
        type(arg) in PLAIN for arg in args if isinstance(arg, Tensor)
    )


def is_recorded(args: Sequence[Any]) -> bool:
    """Whether something below this vmap records a derivative of what the arguments give."""
    if is_transformed():
        return True
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
