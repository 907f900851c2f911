"""An LSTM as tutorials write it: one nn.Linear per gate, and a loop over the steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .problem import State, Tensors
from .workload import Workload

GATES = ("input_gate", "forget_gate", "candidate", "output_gate")  # in nn.LSTM's order


class Recurrence(nn.Module):
    """One layer: [T, B, I] -> [T, B, H], h [B, H], c [B, H]."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input_gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.forget_gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.candidate = nn.Linear(input_size + hidden_size, hidden_size)
        self.output_gate = nn.Linear(input_size + hidden_size, hidden_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.zeros(x.shape[1], self.hidden_size, dtype=x.dtype, device=x.device)
        c = torch.zeros(x.shape[1], self.hidden_size, dtype=x.dtype, device=x.device)
        outputs = []
        for x_t in x.unbind(0):
            joined = torch.cat([x_t, h], dim=1)
            i = torch.sigmoid(self.input_gate(joined))
            f = torch.sigmoid(self.forget_gate(joined))
            g = torch.tanh(self.candidate(joined))
            o = torch.sigmoid(self.output_gate(joined))
            c = f * c + i * g
            h = o * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), h, c


class HandWritten(nn.Module):
    """The workload's layers, each a `Recurrence`."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.places = [  # of each layer's parameters in a Chain, and the features of its input
            (f"lstms.{i}.", f"_l{layer}")
            for i in range(len(workload.hidden))
            for layer in range(workload.layers)
        ]
        self.sizes = list(workload.layer_sizes())
        self.layers = nn.ModuleList(Recurrence(s.input, s.hidden) for s in self.sizes)

    def forward(self, x: Tensor) -> tuple[Tensor, list[State]]:
        for layer in self.layers:
            x, _, _ = layer(x)
        return x, []

    @torch.no_grad()
    def load(self, parameters: Tensors) -> None:
        for (prefix, suffix), layer in zip(self.places, self.layers, strict=True):
            w_ih, w_hh, b_ih, b_hh = (
                parameters[f"{prefix}{name}{suffix}"].chunk(4)
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            for k, name in enumerate(GATES):
                gate = getattr(layer, name)
                gate.weight.copy_(torch.cat([w_ih[k], w_hh[k]], dim=1))
                gate.bias.copy_(b_ih[k] + b_hh[k])

    def named_like_chain(self, gradients: Tensors) -> Tensors:
        """Gradients of W_ih, W_hh and the biases, from those of the four linear layers."""
        named = {"x": gradients["x"]}
        for k, (prefix, suffix) in enumerate(self.places):
            weight, bias = (
                torch.cat([gradients[f"layers.{k}.{gate}.{part}"] for gate in GATES])
                for part in ("weight", "bias")
            )
            w_ih, w_hh = weight.split([self.sizes[k].input, self.sizes[k].hidden], dim=1)
            named |= {
                f"{prefix}weight_ih{suffix}": w_ih,
                f"{prefix}weight_hh{suffix}": w_hh,
                f"{prefix}bias_ih{suffix}": bias,
                f"{prefix}bias_hh{suffix}": bias,
            }
        return named
