"""Initial values of a layer's weights, and a learned initial state."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fused_lstm.cell import LSTMCell
from fused_lstm.module import LSTM

_INITIALISERS: dict[str, Callable[[Tensor], Any]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": nn.init.kaiming_uniform_,
    "kaiming_normal": nn.init.kaiming_normal_,
    "orthogonal": nn.init.orthogonal_,
    "uniform": nn.init.uniform_,
    "normal": nn.init.normal_,
    "zeros": nn.init.zeros_,
}
_OWN_NAME = re.compile(r"(weight_(ih|hh|hr)|bias_(ih|hh))(_l\d+(_reverse)?)?")
Initialiser = str | Callable[[Tensor], Any]


@torch.no_grad()
def initialise(
    layer: LSTM | LSTMCell | nn.LSTM | nn.LSTMCell,
    *,
    input: Initialiser | None = "xavier_uniform",
    recurrent: Initialiser | None = "orthogonal",
    bias: Initialiser | None = "zeros",
    forget_bias: float | None = 1.0,
) -> None:
    """Set the weights of an LSTM gate by gate; unless told otherwise by the initialisers of Keras.

    PyTorch draws all of them from the uniform distribution of width ``1/sqrt(H)`` around 0. Gate by
    gate matters: Xavier's bounds and orthogonality are of one gate's ``[H, I]`` or ``[H, P]``, not
    of the four that lie in one tensor, to which Keras applies the same initialisers. A forget bias
    of 1 lets gradients pass many steps from the start (Jozefowicz, Zaremba and Sutskever, 2015).

    Args:
        layer: of ``fused_lstm`` or ``torch.nn``: an LSTM or an LSTMCell.
        input: of ``weight_ih``, and of ``weight_hr`` as a whole: a name from ``torch.nn.init``
            without its underscore (xavier_uniform, xavier_normal, kaiming_uniform, kaiming_normal,
            orthogonal, uniform, normal, zeros), or a function that fills a tensor in place, of
            float32 where the layer is of a 16-bit type; None leaves the values alone.
        recurrent: likewise of ``weight_hh``.
        bias: likewise of both biases.
        forget_bias: what the biases of the forget gate, or the one there is, add up to; None
            leaves it to ``bias``.

    Raises:
        TypeError: for any other module.
        ValueError: for another name, for a layer that has parameters other than those of an LSTM,
            as one does whose weights are computed from others, and what an initialiser itself
            raises, as Xavier's does of a bias; nothing is set then.
    """
    if not isinstance(layer, (LSTM, LSTMCell, nn.LSTM, nn.LSTMCell)):
        raise TypeError(
            "expected an LSTM or an LSTMCell of fused_lstm or torch.nn, "
            f"got {type(layer).__module__}.{type(layer).__qualname__}"
        )
    parameters = dict(layer.named_parameters())
    for name in parameters:
        if not _OWN_NAME.fullmatch(name):
            raise ValueError(
                f"expected the parameters of an LSTM, got {name}: initialise the layer before it "
                "is parametrized or given others"
            )
    fill_input, fill_recurrent, fill_bias = map(_function, (input, recurrent, bias))
    fills = {"weight_ih": fill_input, "weight_hr": fill_input, "weight_hh": fill_recurrent}
    values = {}
    for name, parameter in parameters.items():
        kind = name.split("_l")[0]
        # All before any is written: what fills them may fail.
        gates = _filled(parameter, fills.get(kind, fill_bias), 1 if kind == "weight_hr" else 4)
        if kind.startswith("bias") and forget_bias is not None:
            first = kind == "bias_ih" or name.replace("_hh", "_ih") not in parameters
            gates[1].fill_(forget_bias if first else 0.0)
        values[name] = torch.cat(gates)
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _filled(parameter: Tensor, fill: Callable[[Tensor], Any], parts: int) -> list[Tensor]:
    """Copies of the parts, filled; of 16-bit types in float32, as PyTorch factors no others."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    gates = [gate.to(dtype, copy=True) for gate in parameter.chunk(parts)]
    for gate in gates:
        fill(gate)
    return gates


def _function(choice: Initialiser | None) -> Callable[[Tensor], Any]:
    if choice is None:
        return lambda tensor: tensor
    if callable(choice):
        return choice
    if choice not in _INITIALISERS:
        raise ValueError(f"expected one of {', '.join(_INITIALISERS)}, got {choice!r}")
    return _INITIALISERS[choice]


class InitialState(nn.Module):
    """A learned initial state: ``hx`` of an LSTM, and ``reset_hx`` of its resets.

    ``layer(x, initial(batch))`` begins every row with it, and
    ``layer(x, hx, reset=mask, reset_hx=initial())`` every episode.

    Args:
        layer: an LSTM of ``fused_lstm`` or ``torch.nn``, for its shapes, dtype and device.

    Raises:
        TypeError: for any other layer.

    Attributes:
        h: ``[L*D, P]`` parameter, zeros at first.
        c: ``[L*D, H]`` likewise.
    """

    def __init__(self, layer: LSTM | nn.LSTM) -> None:
        super().__init__()
        if not isinstance(layer, (LSTM, nn.LSTM)):
            raise TypeError(f"expected an LSTM, got {type(layer).__name__}")
        groups = layer.num_layers * (2 if layer.bidirectional else 1)
        like = layer.weight_hh_l0
        options = dict(dtype=like.dtype, device=like.device)
        self.h = nn.Parameter(torch.zeros(groups, like.shape[1], **options))
        self.c = nn.Parameter(torch.zeros(groups, layer.hidden_size, **options))

    def forward(self, batch: int = 1) -> tuple[Tensor, Tensor]:
        """``(h [L*D, B, P], c [L*D, B, H])``, the same for all rows, as views.

        For batched and packed input; unbatched input takes ``(initial.h, initial.c)``.
        """
        return self.h.unsqueeze(1).expand(-1, batch, -1), self.c.unsqueeze(1).expand(-1, batch, -1)
