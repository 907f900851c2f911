"""The workload's LSTMs called as only fused_lstm can be."""

from __future__ import annotations

import torch
from torch import Tensor

import fused_lstm

from .problem import Chain, State
from .workload import Workload


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
