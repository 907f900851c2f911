"""What is measured: sizes, input, and which bar of the project a row counts towards."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

DENSE = "dense float32"
PACKED = "packed, random lengths"
STEPPING = "one step at a time"
PROJECTION = "proj_size"
DOUBLE = "float64"
BFLOAT16 = "bfloat16"
FLOAT16 = "float16"
TF32 = "tf32"

INFERENCE = "inference"
FORWARD = "forward"  # with grad enabled, so that backward could follow
TRAINING = "training"  # forward, and backward to the input and every parameter
ALL_MODES = (INFERENCE, FORWARD, TRAINING)


@dataclass(frozen=True)
class Workload:
    """One row of the benchmark.

    A model is a chain of LSTMs, one for each entry of `hidden`, each of `layers` layers.
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
    last_step: bool = False  # only the last step's output gets a gradient
    calls: int = 1  # calls one after the other, each starting from the state of the one before
    tf32: bool = False  # float32 may be rounded to TF32 in products, on a GPU
    threads: int | None = None  # None: as many as the benchmark was told to use
    modes: tuple[str, ...] = ALL_MODES
    note: str = ""  # what differs from the model it is named after

    @property
    def shape(self) -> str:
        """Sizes in one cell of a table, such as "32x100 128->256 x2 bi"."""
        hidden = "->".join(str(size) for size in self.hidden)
        parts = [f"{self.batch}x{self.steps} {self.input}->{hidden}"]
        parts += [f"x{self.layers}"] if self.layers > 1 else []
        parts += ["bi"] if self.bidirectional else []
        parts += [f"proj {self.proj}"] if self.proj else []
        return " ".join(parts)

    def lengths(self) -> list[int]:
        """Steps of each sequence. Packed: random, on average half, and one has all of them."""
        if not self.packed:
            return [self.steps] * self.batch
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, self.steps + 1, (self.batch,), generator=generator).tolist()
        lengths[0] = self.steps
        return lengths

    def flops(self, mode: str) -> float:
        """Floating-point operations of the matrix products of one call; the rest is not counted."""
        directions = 2 if self.bidirectional else 1
        rows = sum(self.lengths())
        size, total = self.input, 0
        for hidden in self.hidden:
            output = self.proj or hidden
            for _ in range(self.layers):
                per_row = 2 * 4 * hidden * (size + output) + 2 * hidden * self.proj
                total += rows * directions * per_row
                size = output * directions
        # Backward multiplies twice as much: once for the data's gradients, once for the weights'.
        return total * (3.0 if mode == TRAINING else 1.0)


def shape_rows() -> list[Workload]:
    """Plain shapes, and the same shapes packed, projected and in other dtypes."""
    small = Workload("small", DENSE, 8, 50, 64, (128,))
    medium = Workload("medium", DENSE, 32, 100, 128, (256,))
    rows = [
        Workload("single", DENSE, 1, 50, 128, (128,)),
        Workload("single, long", DENSE, 1, 200, 512, (512,)),
        small,
        medium,
        Workload("large", DENSE, 64, 100, 128, (256,)),
        Workload("square", DENSE, 64, 50, 512, (512,)),
        replace(small, name="small, packed", group=PACKED, packed=True),
        replace(medium, name="medium, packed", group=PACKED, packed=True),
        replace(medium, name="medium, projected", group=PROJECTION, proj=128),
        replace(medium, name="medium, float64", group=DOUBLE, dtype=torch.float64),
        replace(medium, name="medium, bfloat16", group=BFLOAT16, dtype=torch.bfloat16),
        replace(small, name="small, float16", group=FLOAT16, dtype=torch.float16),
    ]
    return rows


def application_rows() -> list[Workload]:
    """LSTMs as published models use them; what this package does not have yet is left out."""
    both, train = (INFERENCE, TRAINING), (TRAINING,)
    deep = {"layers": 2, "bidirectional": True, "modes": both}
    demucs = Workload("demucs", DENSE, 16, 200, 512, (512,), **deep)
    pyannet = Workload("pyannet", DENSE, 32, 293, 60, (128,), batch_first=True, **deep)
    rnnt = Workload("rnnt_layernorm", DENSE, 8, 50, 512, (512,), layers=3, modes=train)
    rnnt = replace(rnnt, note="without layer norm")
    awd_lstm = Workload("awd_lstm", DENSE, 15, 70, 300, (1150, 1150, 650), modes=train)
    resets = Workload("rl_resets", DENSE, 128, 128, 256, (256,), modes=train)
    hydrology = Workload("hydrology", DENSE, 256, 365, 15, (256,), last_step=True, modes=train)
    long = Workload("long", DENSE, 2, 8192, 4, (24,), layers=3, modes=train)
    return [
        replace(resets, note="without resets"),
        Workload("atari", DENSE, 2, 128, 512, (128,), modes=train),
        demucs,
        pyannet,
        replace(pyannet, name="pyannet, packed", group=PACKED, packed=True),
        replace(hydrology, name="hydrology, H=20", hidden=(20,)),
        replace(hydrology, name="hydrology, H=256"),
        replace(awd_lstm, note="without weight drop"),
        rnnt,
        replace(rnnt, name="rnnt_layernorm, packed", group=PACKED, packed=True),
        Workload("fastrnns", DENSE, 64, 100, 512, (512,), modes=both),
        replace(long, note="8192 steps of 65536"),
    ]


def stepping_rows() -> list[Workload]:
    """One step per call, the state carried from call to call, without gradients."""
    one = (INFERENCE,)
    return [
        Workload("step", STEPPING, 1, 1, 128, (128,), calls=200, modes=one),
        Workload("vad", STEPPING, 1, 1, 128, (128,), calls=1000, threads=1, modes=one),
        Workload("atari, rollout", STEPPING, 8, 1, 512, (128,), calls=100, modes=one),
        Workload("predictor, 1", STEPPING, 1, 1, 640, (640,), layers=2, calls=50, modes=one),
        Workload("predictor, 16", STEPPING, 16, 1, 640, (640,), layers=2, calls=50, modes=one),
    ]


def cpu_workloads() -> list[Workload]:
    return shape_rows() + application_rows() + stepping_rows()


def cuda_workloads() -> list[Workload]:
    """The applications, those that need a GPU too, and a grid of sizes in every kind of float."""
    bonito = Workload("bonito", FLOAT16, 96, 1667, 1024, (1024,), layers=5)
    bonito = replace(bonito, note="all layers in one direction")
    rows = [
        *application_rows(),
        replace(bonito, name="bonito, float16", dtype=torch.float16, modes=(INFERENCE,)),
        replace(
            bonito,
            name="bonito, bfloat16",
            group=BFLOAT16,
            dtype=torch.bfloat16,
            modes=(TRAINING,),
        ),
    ]
    kinds = {
        DENSE: {},
        TF32: {"tf32": True},
        BFLOAT16: {"dtype": torch.bfloat16},
        FLOAT16: {"dtype": torch.float16},
    }
    for group, fields in kinds.items():
        for hidden in (64, 128, 256, 512, 768, 1024, 1536, 2048):
            for batch in (1, 8, 16, 64, 256):
                name = f"H={hidden}, B={batch}, {group}"
                row = Workload(name, group, batch, 128, hidden, (hidden,), **fields)
                rows.append(replace(row, modes=(INFERENCE, TRAINING)))
    return rows


def quick_workloads() -> list[Workload]:
    """One small row of each kind: shows in seconds that everything works, and measures little."""
    names = ("single", "small", "small, packed", "small, float16", "step")
    return [row for row in cpu_workloads() if row.name in names]
