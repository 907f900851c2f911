"""A row of LSTMCell: the cell called once per step, as decoders call it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .problem import State, Tensors
from .workload import Workload

PLACE = "lstms.0.{}_l0"  # where a Chain has the parameter that a cell has under this name


class CellLoop(nn.Module):
    def __init__(self, make: Callable[..., nn.Module], workload: Workload) -> None:
        super().__init__()
        self.cell = make(workload.input, workload.hidden[0])

    def forward(self, x: Tensor) -> tuple[Tensor, list[State]]:
        state, outputs = None, []
        for x_t in x.unbind(0):
            state = self.cell(x_t, state)
            outputs.append(state[0])
        h, c = state
        return torch.stack(outputs), [(h.unsqueeze(0), c.unsqueeze(0))]

    def load(self, parameters: Tensors) -> None:
        names = self.cell.state_dict()
        self.cell.load_state_dict({name: parameters[PLACE.format(name)] for name in names})

    def named_like_chain(self, gradients: Tensors) -> Tensors:
        cell = {n.removeprefix("cell."): g for n, g in gradients.items() if n != "x"}
        return {"x": gradients["x"]} | {PLACE.format(name): g for name, g in cell.items()}
