"""Weights in the layouts of other libraries and of textbooks, to a layer and back.

A layer's own layout is PyTorch's: ``weight_ih [4H, I]`` and ``weight_hh [4H, H]`` with the gates in
the order i, f, g, o, and two biases ``[4H]`` that are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fused_lstm.module import LSTM

_ORDERS = ("hx", "xh")
_ONE_WAY = "the textbook's cell has one direction and no projection"
_HASTE_WAY = "haste's LSTM has one direction"
_TEXTBOOK = "ifCo"  # the letters of the gates i, f, g, o
_HASTE = (0, 2, 1, 3)  # of PyTorch's gates, in haste's order i, g, f, o, and the other way round
_DECIDED = ("bias", "bidirectional", "hidden_size", "input_size", "num_layers", "proj_size")


def from_concatenated(
    cls: type[LSTM],
    W_f: Any,
    W_i: Any,
    W_C: Any,
    W_o: Any,
    b_f: Any = None,
    b_i: Any = None,
    b_C: Any = None,
    b_o: Any = None,
    *,
    order: str = "hx",
    **options: Any,
) -> LSTM:
    """A layer of the textbook cell's weights.

    The cell computes ``f_t = sigmoid(W_f [h_{t-1}, x_t] + b_f)``, likewise ``i_t`` and ``o_t``,
    ``C~_t = tanh(W_C [h_{t-1}, x_t] + b_C)`` and ``C_t = f_t C_{t-1} + i_t C~_t``.

    Args:
        cls: the class of the layer.
        W_f: ``[H, H + I]``, of several layers a sequence of them, ``[H, 2H]`` from the second on;
            likewise ``W_i``, ``W_C`` and ``W_o``. Tensors, arrays or nested lists.
        W_i: see ``W_f``.
        W_C: see ``W_f``.
        W_o: see ``W_f``.
        b_f: ``[H]``, or a sequence; likewise the other biases. All four or none.
        b_i: see ``b_f``.
        b_C: see ``b_f``.
        b_o: see ``b_f``.
        order: ``"hx"`` for weights of ``[h, x]``, ``"xh"`` for those of ``[x, h]``.
        options: of the layer: ``batch_first``, ``dropout``, ``recompute``, ``device`` and
            ``dtype``, which is that of the weights unless given.

    Raises:
        TypeError: for options that the weights decide.
        ValueError: for shapes that do not fit together, and another order.
    """
    if order not in _ORDERS:
        raise ValueError(f"expected order to be 'hx' or 'xh', got {order!r}")
    biases = (b_i, b_f, b_C, b_o)
    if any(b is None for b in biases) != all(b is None for b in biases):
        raise ValueError("expected all four biases or none")
    if options.pop("bidirectional", False) or options.pop("proj_size", 0):
        raise ValueError(_ONE_WAY)
    weights = [_per_layer(w, 2) for w in (W_i, W_f, W_C, W_o)]
    layers, hidden = len(weights[0]), weights[0][0].shape[0] if weights[0] else 0
    if not layers or any(len(w) != layers for w in weights):
        counts = [len(weights[k]) for k in (1, 0, 2, 3)]  # as they were given
        raise ValueError(f"expected as many layers of each gate, at least 1, got {counts}")
    groups: list[list[Tensor]] = []
    for of_gates in zip(*weights, strict=True):
        inputs = of_gates[0].shape[1] - hidden
        if inputs <= 0 or any(t.shape != (hidden, hidden + inputs) for t in of_gates):
            raise ValueError(
                f"expected weights of shape [{hidden}, {hidden} + input size], got "
                f"{[list(t.shape) for t in of_gates]}"
            )
        h, x = torch.cat(of_gates).split(
            (hidden, inputs) if order == "hx" else (inputs, hidden), 1
        )[:: _way(order)]
        groups.append([x, h])
    if b_f is not None:
        per_gate = [_per_layer(b, 1) for b in biases]
        if any(len(b) != layers for b in per_gate):
            counts = [len(per_gate[k]) for k in (1, 0, 2, 3)]
            raise ValueError(f"expected biases of {layers} layers, got {counts}")
        for group, of_gates in zip(groups, zip(*per_gate, strict=True), strict=True):
            if any(t.shape != (hidden,) for t in of_gates):
                shapes = [list(t.shape) for t in of_gates]
                raise ValueError(f"expected biases of shape [{hidden}], got {shapes}")
            group.append(torch.cat(of_gates))
    return _layer(cls, groups, bidirectional=False, options=options)


def to_concatenated(layer: LSTM, *, order: str = "hx") -> dict[str, list[Tensor]]:
    """The arguments of :func:`from_concatenated` that give this layer, as new tensors.

    Returns:
        ``W_f, W_i, W_C, W_o``, and with biases ``b_f, b_i, b_C, b_o``: a list over layers each.

    Raises:
        ValueError: for a bidirectional layer or one with a projection, which the textbook has not,
            and for another order than "hx" and "xh".
    """
    if order not in _ORDERS:
        raise ValueError(f"expected order to be 'hx' or 'xh', got {order!r}")
    if layer.bidirectional or layer.proj_size:
        raise ValueError(_ONE_WAY)
    found: dict[str, list[Tensor]] = {}
    for w_ih, w_hh, *biases in _groups(layer):
        w = torch.cat([w_hh, w_ih][:: _way(order)], 1)
        for letter, part in zip(_TEXTBOOK, w.chunk(4), strict=True):
            found.setdefault(f"W_{letter}", []).append(part.clone())
        if biases:
            for letter, part in zip(_TEXTBOOK, (biases[0] + biases[1]).chunk(4), strict=True):
                found.setdefault(f"b_{letter}", []).append(part.clone())
    return found


def from_keras(
    cls: type[LSTM], weights: Sequence[Any], *, bidirectional: bool = False, **options: Any
) -> LSTM:
    """A layer of what ``get_weights()`` of ``keras.layers.LSTM`` returns.

    Args:
        cls: the class of the layer.
        weights: ``kernel [I, 4H]``, ``recurrent_kernel [H, 4H]`` and, with ``use_bias``, ``bias
            [4H]``; of ``Bidirectional`` those of both directions one after the other; of stacked
            layers those of all, from the first on.
        bidirectional: whether they are of ``Bidirectional(LSTM(...), merge_mode="concat")``.
        options: of the layer: ``batch_first`` (Keras' inputs are), ``dropout`` and so on;
            ``dtype`` is that of the weights unless given.

    Raises:
        TypeError: for options that the weights decide.
        ValueError: for shapes that do not fit together.
    """
    return _from_kernels(cls, weights, bidirectional, (0, 1, 2, 3), options)


def to_keras(layer: LSTM) -> list[Tensor]:
    """What ``set_weights()`` of ``keras.layers.LSTM`` takes, as new tensors; see `from_keras`.

    Raises:
        ValueError: for a layer with a projection.
    """
    return _to_kernels(layer, (0, 1, 2, 3))


def from_haste(cls: type[LSTM], weights: Sequence[Any], **options: Any) -> LSTM:
    """A layer of haste's ``kernel [I, 4H]``, ``recurrent_kernel [H, 4H]`` and ``bias [4H]``.

    The gates are in the order i, g, f, o; of stacked layers the weights of all, one after the
    other. Other arguments and errors are those of :func:`from_keras`, but that there is one
    direction.
    """
    if options.pop("bidirectional", False):
        raise ValueError(_HASTE_WAY)
    return _from_kernels(cls, weights, False, _HASTE, options)


def to_haste(layer: LSTM) -> list[Tensor]:
    """``kernel``, ``recurrent_kernel`` and ``bias`` of each layer, as new tensors.

    Raises:
        ValueError: for a bidirectional layer or one with a projection.
    """
    if layer.bidirectional:
        raise ValueError(_HASTE_WAY)
    return _to_kernels(layer, _HASTE)


def _from_kernels(
    cls: type[LSTM],
    weights: Sequence[Any],
    bidirectional: bool,
    gates: Sequence[int],
    options: dict[str, Any],
) -> LSTM:
    """Of weights ``[features, 4H]``, whose gates are PyTorch's in the order ``gates``."""
    tensors = [torch.as_tensor(w) for w in weights]
    dims = [t.dim() for t in tensors]
    per_group = 3 if 1 in dims else 2
    if not tensors or dims != ([2, 2, 1] if per_group == 3 else [2, 2]) * (
        len(tensors) // per_group
    ):
        raise ValueError(
            "expected kernel [I, 4H], recurrent_kernel [H, 4H] and bias [4H] of each layer and "
            "direction, the bias everywhere or nowhere, got shapes "
            f"{[list(t.shape) for t in tensors]}"
        )
    found = [_reordered(t, gates) for t in tensors]
    found = [t.t() if t.dim() == 2 else t for t in found]
    groups = [found[k : k + per_group] for k in range(0, len(found), per_group)]
    return _layer(cls, groups, bidirectional=bidirectional, options=options)


def _to_kernels(layer: LSTM, gates: Sequence[int]) -> list[Tensor]:
    if layer.proj_size:
        raise ValueError("this layout has no place for a projection")
    found = []
    for w_ih, w_hh, *biases in _groups(layer):
        found += [_reordered(w.t(), gates).clone() for w in (w_ih, w_hh)]
        if biases:
            found.append(_reordered(biases[0] + biases[1], gates))
    return found


def _reordered(t: Tensor, gates: Sequence[int]) -> Tensor:
    """The four parts of the last dimension in another order."""
    parts = t.chunk(4, -1)
    return torch.cat([parts[k] for k in gates], -1)


def _way(order: str) -> int:
    return 1 if order == "hx" else -1


def _per_layer(value: Any, dims: int) -> list[Tensor]:
    """A tensor of these dimensions as that of one layer, a sequence of them as that of several."""
    if not isinstance(value, Tensor) and isinstance(value, Sequence):
        rows = [torch.as_tensor(v) for v in value]
        if all(t.dim() == dims for t in rows):
            return rows
    t = torch.as_tensor(value)
    if t.dim() == dims + 1:
        return list(t)
    if t.dim() != dims:
        raise ValueError(f"expected tensors of {dims} dimensions, got shape {list(t.shape)}")
    return [t]


@torch.no_grad()
def _groups(layer: LSTM) -> list[list[Tensor]]:
    """The weights of each layer and direction, without their gradients."""
    return [[w.detach() for w in group] for group in layer.all_weights]


def _layer(
    cls: type[LSTM],
    groups: Sequence[Sequence[Tensor]],
    bidirectional: bool,
    options: dict[str, Any],
) -> LSTM:
    """A layer of ``w_ih [4H, I]``, ``w_hh [4H, H]`` and maybe one bias of each direction."""
    directions = 2 if bidirectional else 1
    if len(groups) % directions:
        raise ValueError(f"expected weights of both directions, got {len(groups)} groups")
    w_ih, w_hh = groups[0][:2]
    if decided := [name for name in _DECIDED if name in options]:
        raise TypeError(f"expected no option that the weights decide, got {', '.join(decided)}")
    trains = w_ih.is_floating_point() or w_ih.is_complex()
    options = {"dtype": w_ih.dtype if trains else torch.get_default_dtype(), **options}
    layer = cls(
        w_ih.shape[1],
        w_hh.shape[1],
        len(groups) // directions,
        bias=len(groups[0]) > 2,
        bidirectional=bidirectional,
        **options,
    )
    with torch.no_grad():
        for own, given in zip(layer.all_weights, groups, strict=True):
            values = [*given, torch.zeros_like(given[2])] if len(given) > 2 else given
            for parameter, value in zip(own, values, strict=True):
                if parameter.shape != value.shape:
                    raise ValueError(
                        f"expected a weight of shape {list(parameter.shape)} in PyTorch's layout, "
                        f"got one that makes {list(value.shape)}"
                    )
                parameter.copy_(value)
    return layer
