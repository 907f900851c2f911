"""The workload's LSTMs called as only fused_lstm can be."""

from __future__ import annotations

import torch
from torch import Tensor

import fused_lstm

from .problem import Chain, Sequence, State
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


class ResetsChain(Chain):
    """With a mask that begins an episode anew in 3 of 100 steps."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(fused_lstm.LSTM, workload)
        generator = torch.Generator().manual_seed(3)
        shape = (workload.batch, workload.steps)
        mask = torch.rand(shape, generator=generator) < RESETS
        self.register_buffer("mask", mask if workload.batch_first else mask.t(), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, list[State]]:
        states = []
        for lstm in self.lstms:
            x, state = lstm(x, reset=self.mask)
            states.append(state)
        return x, states


class PointwiseChain(Chain):
    """With operations before and behind that a compiler fuses, and that change nothing."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(fused_lstm.LSTM, workload)

    def forward(self, x: Tensor) -> tuple[Tensor, list[State]]:
        y, states = super().forward(x.relu() - (-x).relu())
        return y.relu() - (-y).relu(), states


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
