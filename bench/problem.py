"""What every provider of one row is given: parameters, input, and a gradient of the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .workload import Workload

Sequence = Tensor | PackedSequence
State = tuple[Tensor, Tensor]
Tensors = dict[str, Tensor]


def rows_of(sequence: Sequence) -> Tensor:
    """The tensor that holds a sequence's values."""
    return sequence.data if isinstance(sequence, PackedSequence) else sequence


def with_rows(sequence: Sequence, rows: Tensor) -> Sequence:
    """The same sequence with other values."""
    return sequence._replace(data=rows) if isinstance(sequence, PackedSequence) else rows


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
            size = (workload.proj or hidden) * workload.directions

    def forward(self, x: Sequence) -> tuple[Sequence, list[State]]:
        states = []
        for lstm in self.lstms:
            x, state = lstm(x)
            states.append(state)
        return x, states

    def step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """One call of a model that carries its state from call to call."""
        return self.lstms[0](x, state)

    def tensors_of(self, state: State) -> State:
        """h_n and c_n, of what `step` has returned."""
        return state

    def more(self, x: Sequence) -> Tensors:
        """What a call gives beside output and state, by name."""
        return {}

    def load(self, parameters: Tensors) -> None:
        self.load_state_dict(parameters)

    def named_like_chain(self, gradients: Tensors) -> Tensors:
        """Gradients of this model's own parameters, under the names that `Problem` has for them."""
        return gradients


@dataclass(frozen=True)
class Problem:
    """A workload with its numbers, the same every time."""

    workload: Workload
    threads: int
    parameters: Tensors  # named as in Chain(nn.LSTM)
    x: Sequence  # [T, B, I], [B, T, I], or packed rows
    grad: Tensor  # of the output, or of its last step where only that is in the loss

    @property
    def device(self) -> torch.device:
        return self.grad.device

    def to(self, dtype: torch.dtype) -> Problem:
        parameters = {name: p.to(dtype) for name, p in self.parameters.items()}
        x = with_rows(self.x, rows_of(self.x).to(dtype))
        return replace(self, parameters=parameters, x=x, grad=self.grad.to(dtype))

    def padded(self) -> Problem:
        """The same sequences as one dense tensor [T, B, ...], zeros after each one's end."""
        x, _ = pad_packed_sequence(self.x)
        grad, _ = pad_packed_sequence(with_rows(self.x, self.grad))
        workload = replace(self.workload, packed=False, batch_first=False)
        return replace(self, workload=workload, x=x, grad=grad)

    def pack(self, padded: Tensor) -> Tensor:
        """Live rows of a padded tensor [T, B, ...], in the order of the packed input."""
        lengths = torch.tensor(self.workload.lengths())
        return rows_of(pack_padded_sequence(padded, lengths, enforce_sorted=False))


def make_input(workload: Workload, device: str = "cpu") -> Sequence:
    """Random input, [T, B, I] or [B, T, I], or packed."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(workload.steps, workload.batch, workload.input, generator=generator)
    x = x.to(device=device, dtype=workload.dtype)
    if workload.packed:
        return pack_padded_sequence(x, torch.tensor(workload.lengths()), enforce_sorted=False)
    return x.transpose(0, 1).contiguous() if workload.batch_first else x


def make_problem(workload: Workload, threads: int, device: str = "cpu") -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = Chain(nn.LSTM, workload).state_dict()
    parameters = {n: p.to(device=device, dtype=workload.dtype) for n, p in state.items()}
    x = make_input(workload, device)
    *_, last = workload.layer_sizes()
    leading = rows_of(x).shape[:-1]
    if workload.last_step:
        leading = (workload.batch,)
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(*leading, last.output * workload.directions, generator=generator)
    return Problem(workload, threads, parameters, x, grad.to(rows_of(x)))


def load(model: nn.Module, problem: Problem) -> nn.Module:
    """The model on the problem's device and in its dtype, with the problem's parameters."""
    model.to(device=problem.device, dtype=problem.grad.dtype)
    model.load(problem.parameters)
    return model
