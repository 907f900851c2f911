"""The rows of the benchmark."""

from __future__ import annotations

from dataclasses import replace

import torch

from .workload import ALL_MODES, FORWARD, INFERENCE, MODES, TRAINING, Workload

__all__ = [
    "ALL_MODES",
    "FORWARD",
    "INFERENCE",
    "MODES",
    "TRAINING",
    "Workload",
    "cpu_workloads",
    "cuda_workloads",
    "grid_workloads",
    "quick_workloads",
]

DENSE = "dense float32"
PACKED = "packed, random lengths"
LAST_STEP = "last step in the loss"
STEPPING = "one step at a time"
CELL = "LSTMCell"
PROJECTION = "proj_size"
DOUBLE = "float64"
BFLOAT16 = "bfloat16"
FLOAT16 = "float16"
TF32 = "tf32"
GRID = "grid of sizes"
BUSY = "one core busy"
MEMBERS = "members by torch.vmap"

GRID_BATCH = (1, 2, 8, 32, 128)
GRID_HIDDEN = (64, 128, 256, 512, 1024)


def shape_rows() -> list[Workload]:
    """Plain shapes, and the same shapes packed, projected and in other dtypes."""
    single = Workload("single", DENSE, 1, 50, 128, (128,))
    small = Workload("small", DENSE, 8, 50, 64, (128,))
    medium = Workload("medium", DENSE, 32, 100, 128, (256,))
    square = Workload("square", DENSE, 64, 50, 512, (512,))
    wide = Workload("wide", DENSE, 16, 50, 1024, (1024,))
    dense = [
        single,
        Workload("single, long", DENSE, 1, 200, 512, (512,)),
        Workload("single, speech", DENSE, 1, 300, 80, (384,), source="mel spectrogram of 3 s"),
        small,
        medium,
        Workload("large", DENSE, 64, 100, 128, (256,)),
        square,
        wide,
    ]
    bfloat16 = {"group": BFLOAT16, "dtype": torch.bfloat16}
    others = [
        replace(small, name="small, packed", group=PACKED, packed=True),
        replace(medium, name="medium, packed", group=PACKED, packed=True),
        replace(medium, name="medium, projected", group=PROJECTION, proj=128),
        replace(medium, name="medium, float64", group=DOUBLE, dtype=torch.float64),
        *(
            replace(row, name=f"{row.name}, bfloat16", **bfloat16)
            for row in (single, small, medium, square, wide)
        ),
        replace(small, name="small, float16", group=FLOAT16, dtype=torch.float16),
    ]
    return [row if row.source else replace(row, source="plain shape") for row in dense + others]


def application_rows() -> list[Workload]:
    """LSTMs as published models use them; a note says where something is left out."""
    deep = {"layers": 2, "bidirectional": True}
    demucs = Workload("demucs", DENSE, 16, 200, 512, (512,), source="demucs, BLSTM", **deep)
    pyannet = Workload("pyannet", DENSE, 32, 293, 60, (128,), batch_first=True, **deep)
    pyannet = replace(pyannet, source="pyannote.audio, PyanNet")
    rnnt = Workload("rnnt_layernorm", DENSE, 8, 50, 512, (512,), layers=3)
    rnnt = replace(rnnt, note="without layer norm", source="torchaudio, RNN-T predictor")
    awd_lstm = Workload("awd_lstm", DENSE, 15, 70, 300, (1150, 1150, 650))
    awd_lstm = replace(awd_lstm, note="without weight drop", source="AWD-LSTM language model")
    resets = Workload("rl_resets", DENSE, 128, 128, 256, (256,), also=("resets", "reset-loop"))
    resets = replace(resets, note="without resets, but in the lines that name them")
    hydrology = Workload("hydrology", DENSE, 256, 365, 15, (256,), source="neuralhydrology")
    training_last = {"group": LAST_STEP, "last_step": True, "modes": (TRAINING,)}
    long = Workload("long", DENSE, 2, 8192, 4, (24,), layers=3, also=("recompute",))
    long = replace(long, note="8192 steps of 65536")
    return [
        replace(resets, source="pytorch/rl"),
        replace(resets, name="rl_resets, 8", batch=8, source="recurrent PPO"),
        Workload("atari", DENSE, 2, 128, 512, (128,), source="CleanRL, PPO with LSTM"),
        demucs,
        pyannet,
        replace(pyannet, name="pyannet, packed", group=PACKED, packed=True),
        replace(pyannet, name="pyannet, half to all", group=PACKED, packed=True, shortest=0.5),
        replace(hydrology, name="hydrology, all steps", modes=(TRAINING,)),
        replace(hydrology, **training_last),
        replace(hydrology, name="hydrology, H=20", hidden=(20,), **training_last),
        awd_lstm,
        rnnt,
        replace(rnnt, name="rnnt_layernorm, packed", group=PACKED, packed=True),
        Workload("fastrnns", DENSE, 64, 100, 512, (512,), source="pytorch, benchmarks/fastrnns"),
        replace(long, source="neural-amp-modeler"),
    ]


def stepping_rows() -> list[Workload]:
    """One step per call, the state carried from call to call, without gradients."""
    step = Workload("step", STEPPING, 1, 1, 128, (128,), calls=200, modes=(INFERENCE,))
    rollout = replace(step, batch=8, input=512, calls=100, source="CleanRL, PPO with LSTM")
    predictor = replace(step, input=640, hidden=(640,), layers=2, calls=50)
    predictor = replace(predictor, source="speech transducers, predictor")
    return [
        replace(step, source="plain shape"),
        replace(step, name="step, 32", input=32, hidden=(32,), source="plain shape"),
        replace(step, name="vad", calls=1000, threads=1, note="one thread", source="silero-vad"),
        replace(rollout, name="atari, rollout"),
        replace(predictor, name="predictor, 1"),
        replace(predictor, name="predictor, 16", batch=16),
    ]


def cell_rows() -> list[Workload]:
    """An LSTMCell called 20 times, as decoders do."""
    cell = Workload("cell", CELL, 1, 20, 128, (128,), cell=True, source="plain shape")
    sizes = ((1, 128), (32, 32), (1, 512), (64, 256))
    return [
        replace(cell, name=f"cell, {batch} x {size}", batch=batch, input=size, hidden=(size,))
        for batch, size in sizes
    ]


def members_rows() -> list[Workload]:
    """What torch.vmap does with a layer: a larger batch, an ensemble, gradients of every sample."""
    row = Workload("vmap of 16", MEMBERS, 64, 50, 128, (128,), members=16, modes=(INFERENCE,))
    training = {"modes": (TRAINING,), "note": "gradients of weights only"}
    ensemble = replace(row, name="ensemble of 8", members=8, ensemble=True, **training)
    samples = replace(row, name="per sample", batch=32, input=64, members=32, **training)
    return [replace(each, source="plain shape") for each in (row, ensemble, samples)]


def busy_rows() -> list[Workload]:
    rows = [row for row in shape_rows() if row.name in ("small", "medium")]
    changes = {"group": BUSY, "busy_core": True, "modes": (TRAINING,)}
    return [replace(row, name=f"{row.name}, one core busy", **changes) for row in rows]


def grid_workloads() -> list[Workload]:
    """Every batch size with every hidden size, for the heat map."""
    return [
        Workload(f"grid, {batch} x {size}", GRID, batch, 50, size, (size,), source="plain shape")
        for size in GRID_HIDDEN
        for batch in GRID_BATCH
    ]


def cpu_workloads() -> list[Workload]:
    rows = shape_rows() + application_rows() + cell_rows() + stepping_rows()
    return rows + members_rows() + busy_rows()


def cuda_workloads() -> list[Workload]:
    """The applications, those that need a GPU too, and a grid of sizes in every kind of float."""
    bonito = Workload("bonito", FLOAT16, 96, 1667, 1024, (1024,), layers=5)
    bonito = replace(bonito, note="all layers in one direction", source="nanopore basecalling")
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
                rows.append(replace(row, source="plain shape"))
    return rows


def quick_workloads() -> list[Workload]:
    """One small row of each kind: shows in seconds that everything works, and measures little."""
    names = ("single", "small", "small, packed", "small, float16", "cell, 1 x 128", "step")
    return [row for row in cpu_workloads() if row.name in names]
