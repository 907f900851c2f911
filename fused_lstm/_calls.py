"""The arguments of one call, and the tensors in arguments and results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: Any) -> Call:
        """Of a tuple of positional arguments, a mapping of keyword arguments, or the one."""
        if isinstance(inputs, Mapping):
            return cls((), dict(inputs))
        # A PackedSequence is a tuple too, and one argument.
        return cls(tuple(inputs) if type(inputs) in (tuple, list) else (inputs,), {})

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of all tensors of floating point in it."""
        return tuple(tuple(t.shape) for t in tensors((self.args, self.kwargs)))

    def detached(self) -> Call:
        """The same values, without the graph that computed them."""
        return Call(*_map(lambda t: t.detach().requires_grad_(t.requires_grad), self))


def _map(change: Callable[[Tensor], Tensor], call: Call) -> tuple[tuple, dict]:
    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value) if value.is_floating_point() else value
        if isinstance(value, nn.utils.rnn.PackedSequence):
            return value._replace(data=change(value.data))
        if type(value) in (tuple, list):
            return type(value)(walk(each) for each in value)
        return value

    return walk(call.args), {name: walk(value) for name, value in call.kwargs.items()}


def tensors(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor of nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors(each)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name, None))
