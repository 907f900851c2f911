"""The workload's LSTMs called as only fused_lstm can be."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_lstm

from .problem import Chain, Sequence, State, Tensors
from .workload import Workload

RESETS = 0.03  # of all steps, as in episodes of some thirty steps


class LengthsChain(Chain):
    """On padded input, time first, with the lengths of the workload's sequences."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(fused_lstm.LSTM, workload)
        for lstm in self.lstms:
            lstm.batch_first = False
        self.lengths = torch.tensor(workload.lengths())

    def forward(self, x: Tensor) -> tuple[Tensor, list[State]]:
        states = []
        for lstm in self.lstms:
            x, state = lstm(x, lengths=self.lengths)
            states.append(state)
        return x, states


class PackingChain(LengthsChain):
    """What lengths save the caller: padded input is packed, and the output padded again."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[State]]:
        packed = pack_padded_sequence(x, self.lengths, enforce_sorted=False)
        packed, states = Chain.forward(self, packed)
        return pad_packed_sequence(packed, total_length=x.shape[0])[0], states


class CellsChain(Chain):
    """With c of every step of the last layer."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(fused_lstm.LSTM, workload)

    def forward(self, x: Sequence) -> tuple[Sequence, list[State]]:
        states = []
        for lstm in self.lstms:
            x, state, _ = lstm(x, return_cells=True)
            states.append(state)
        return x, states

    def more(self, x: Tensor) -> Tensors:
        found = {}
        for i, lstm in enumerate(self.lstms):
            x, _, found[f"cells of {i}"] = lstm(x, return_cells=True)
        return found


class CellsLoopChain(Chain):
    """What cells are compared with: those of a call a step, in one direction."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(nn.LSTM, workload)

    def more(self, x: Tensor) -> Tensors:
        found = {}
        for i, lstm in enumerate(self.lstms):
            time, state, outputs, cells = 1 if lstm.batch_first else 0, None, [], []
            for step in x.split(1, time):
                y, state = lstm(step, state)
                outputs.append(y)
                cells.append(state[1][-1])
            x, found[f"cells of {i}"] = torch.cat(outputs, time), torch.stack(cells, time)
        return found


class ResetsChain(Chain):
    """With a mask that begins an episode anew in 3 of 100 steps."""

    lstm: type[nn.Module] = fused_lstm.LSTM

    def __init__(self, workload: Workload) -> None:
        super().__init__(self.lstm, workload)
        generator = torch.Generator().manual_seed(3)
        shape = (workload.batch, workload.steps)
        mask = torch.rand(shape, generator=generator) < RESETS
        self.register_buffer("mask", mask if workload.batch_first else mask.t(), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, list[State]]:
        states = []
        for lstm in self.lstms:
            x, state = self.run(lstm, x)
            states.append(state)
        return x, states

    def run(self, lstm: nn.Module, x: Tensor) -> tuple[Tensor, State]:
        return lstm(x, reset=self.mask)


class ResetsLoopChain(ResetsChain):
    """The same as users write it today: a call a step, and the state times a mask before it."""

    lstm = nn.LSTM

    def run(self, lstm: nn.Module, x: Tensor) -> tuple[Tensor, State]:
        time = 1 if lstm.batch_first else 0
        begins = self.mask.movedim(time, 0)
        layers = lstm.num_layers * (1 + lstm.bidirectional)
        h = x.new_zeros(layers, begins.shape[1], lstm.proj_size or lstm.hidden_size)
        c = x.new_zeros(layers, begins.shape[1], lstm.hidden_size)
        outputs = []
        for step, begin in zip(x.split(1, time), begins, strict=True):
            live = (~begin).to(x.dtype)[:, None]
            y, (h, c) = lstm(step, (h * live, c * live))
            outputs.append(y)
        return torch.cat(outputs, time), (h, c)


class PointwiseChain(Chain):
    """With operations before and behind that a compiler fuses, and that change nothing.

    Not ReLUs: what a compiled program keeps of them, a mask of single bytes, takes it milliseconds.
    """

    def __init__(self, workload: Workload) -> None:
        super().__init__(fused_lstm.LSTM, workload)

    def forward(self, x: Tensor) -> tuple[Tensor, list[State]]:
        y, states = super().forward(x * 2 * 0.5)
        return y * 2 * 0.5, states


class StreamChain(Chain):
    """Through the stream of the only LSTM, which keeps the state."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(fused_lstm.LSTM, workload)
        self.stream: fused_lstm.Stream | None = None

    def begin(self, x: Tensor) -> fused_lstm.Stream:
        if self.stream is None:
            self.stream = self.lstms[0].stream(x.shape[1])
        self.stream.reset()
        return self.stream

    def forward(self, x: Tensor) -> tuple[Tensor, list[State]]:
        stream = self.begin(x)
        return stream(x), [stream.state]

    def step(self, x: Tensor, state: fused_lstm.Stream | None) -> tuple[Tensor, fused_lstm.Stream]:
        stream = self.begin(x) if state is None else state
        return stream(x), stream

    def tensors_of(self, state: fused_lstm.Stream) -> State:
        return state.state
