"""The implementations that are compared, under one interface: a chain of LSTMs for a workload."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_lstm
from bench.workloads import Workload

Sequence = Tensor | PackedSequence
State = tuple[Tensor, Tensor]

BASELINE = "nn.LSTM"
FUSED = "fused_lstm"
PROVIDERS: dict[str, type[nn.RNNBase]] = {BASELINE: nn.LSTM, FUSED: fused_lstm.LSTM}


class Chain(nn.Module):
    """The workload's LSTMs, each fed with the output of the one before."""

    def __init__(self, make: Callable[..., nn.Module], workload: Workload) -> None:
        super().__init__()
        self.lstms = nn.ModuleList()
        size = workload.input
        for hidden in workload.hidden:
            lstm = make(
                size,
                hidden,
                num_layers=workload.layers,
                batch_first=workload.batch_first,
                bidirectional=workload.bidirectional,
                proj_size=workload.proj,
            )
            self.lstms.append(lstm)
            size = (workload.proj or hidden) * (2 if workload.bidirectional else 1)

    def forward(
        self, x: Sequence, states: list[State] | None = None
    ) -> tuple[Sequence, list[State]]:
        new_states = []
        for i, lstm in enumerate(self.lstms):
            x, state = lstm(x, None if states is None else states[i])
            new_states.append(state)
        return x, new_states


def make_models(workload: Workload, device: str = "cpu") -> dict[str, Chain]:
    """One model per provider, all with the same parameters."""
    torch.manual_seed(0)
    models = {name: Chain(make, workload) for name, make in PROVIDERS.items()}
    parameters = models[BASELINE].state_dict()
    for name, model in models.items():
        model.load_state_dict(parameters)
        models[name] = model.to(device=device, dtype=workload.dtype)
    return models


def make_reference(model: Chain, workload: Workload) -> Chain:
    """nn.LSTM in float64 with this model's parameters."""
    device = next(model.parameters()).device
    reference = Chain(nn.LSTM, workload).to(device=device, dtype=torch.float64)
    reference.load_state_dict(model.state_dict())
    return reference


def make_input(workload: Workload, device: str = "cpu") -> Sequence:
    """Random input, [T, B, I] or [B, T, I], or packed; the same every time."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(workload.steps, workload.batch, workload.input, generator=generator)
    x = x.to(device=device, dtype=workload.dtype)
    if workload.packed:
        return pack_padded_sequence(x, torch.tensor(workload.lengths()), enforce_sorted=False)
    return x.transpose(0, 1).contiguous() if workload.batch_first else x


def rows_of(sequence: Sequence) -> Tensor:
    """The tensor that holds a sequence's values."""
    return sequence.data if isinstance(sequence, PackedSequence) else sequence


def with_rows(sequence: Sequence, rows: Tensor) -> Sequence:
    """The same sequence with other values."""
    return sequence._replace(data=rows) if isinstance(sequence, PackedSequence) else rows
