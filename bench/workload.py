"""What one row of the benchmark computes, and how much work that is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

INFERENCE = "inference"
FORWARD = "forward"  # with grad enabled, so that backward could follow
TRAINING = "training"  # forward, and backward to the input and every parameter
ALL_MODES = (INFERENCE, FORWARD, TRAINING)
MODES = (INFERENCE, TRAINING)


class LayerSize(NamedTuple):
    """One direction of one layer."""

    input: int
    hidden: int
    output: int  # the projection's features where there is one, else hidden
    weights: int  # elements of W_ih
    recurrent: int  # elements of W_hh
    projection: int  # elements of W_hr
    last: bool  # no layer follows


@dataclass(frozen=True)
class Workload:
    """One row of the benchmark.

    A model is a chain of LSTMs, one for each entry of `hidden`, each of `layers` layers. To add a
    row for a feature that a model's call takes (lengths, a mask of resets), add a field here, what
    `Problem` makes of it, and the model that a provider runs for it in `providers.py`.
    """

    name: str
    group: str
    batch: int
    steps: int
    input: int
    hidden: tuple[int, ...]
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    proj: int = 0
    dtype: torch.dtype = torch.float32
    packed: bool = False
    cell: bool = False  # an LSTMCell, called once per step
    last_step: bool = False  # only the last step's output gets a gradient
    members: int = 0  # of the batch, with outputs or gradients of their own: see members.py
    ensemble: bool = False  # the members have weights of their own too
    calls: int = 1  # calls one after the other, each starting from the state of the one before
    tf32: bool = False  # float32 may be rounded to TF32 in products, on a GPU
    shortest: float = 0.0  # packed: the least length that is drawn, as a share of the steps
    busy_core: bool = False  # with another process on one core, and without
    threads: int | None = None  # None: as many as the benchmark was told to use
    modes: tuple[str, ...] = MODES
    also: tuple[str, ...] = ()  # providers that run it besides those that run every row they can
    note: str = ""  # what differs from the model it is named after
    source: str = ""  # where the sizes come from

    @property
    def shape(self) -> str:
        """Sizes in one cell of a table, such as "32x100 128->256 x2 bi"."""
        hidden = ",".join(str(size) for size in self.hidden)
        parts = [f"{self.batch}x{self.steps} {self.input}->{hidden}"]
        parts += [f"x{self.layers}"] if self.layers > 1 else []
        parts += ["bi"] if self.bidirectional else []
        parts += [f"proj {self.proj}"] if self.proj else []
        return " ".join(parts)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def starts_from_zero(self) -> float:
        """How many first steps of a call have a state of zero: of many calls only the first's."""
        return 1 / self.calls

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def lengths(self) -> list[int]:
        """Steps of each sequence. Packed: random between the shortest and all, and one has all."""
        if not self.packed:
            return [self.steps] * self.batch
        generator = torch.Generator().manual_seed(0)
        least = max(1, math.ceil(self.shortest * self.steps))
        lengths = torch.randint(least, self.steps + 1, (self.batch,), generator=generator).tolist()
        lengths[0] = self.steps
        return lengths

    def layer_sizes(self) -> Iterator[LayerSize]:
        """Every layer, one after the other; each has `directions` of these sizes."""
        size, left = self.input, self.layers * len(self.hidden)
        for hidden in self.hidden:
            output = self.proj or hidden
            for _ in range(self.layers):
                left -= 1
                elements = (4 * hidden * size, 4 * hidden * output, hidden * self.proj)
                yield LayerSize(size, hidden, output, *elements, last=left == 0)
                size = output * self.directions

    def layer_flops(self, size: LayerSize, mode: str) -> float:
        """Floating-point operations of the matrix products of one layer; see `flops`."""
        rows = sum(self.lengths())
        after_first = rows - self.batch * self.starts_from_zero
        recurrent = after_first * size.recurrent + rows * size.projection
        forward = 2 * self.directions * (rows * size.weights + recurrent)
        if self.members and mode == TRAINING:  # one layer, whose input has no gradient
            return 3.0 * forward - 2 * self.directions * rows * size.weights
        # Backward multiplies twice as much: once for the data's gradients, once for the weights'.
        return forward * (3.0 if mode == TRAINING else 1.0)

    def flops(self, mode: str) -> float:
        """Floating-point operations of the matrix products of one call; the rest is not counted.

        Neither is the recurrent product of a first step whose state is zero.
        """
        return sum(self.layer_flops(size, mode) for size in self.layer_sizes())
