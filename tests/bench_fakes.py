"""Runs of the benchmark that nobody measured, and a machine that nobody has."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench import disturbed, runner
from bench.providers import FUSED, PROVIDERS, Prepared, Provider
from bench.results import Disturbance, Limit, Measurement, Result, Run
from bench.watch import UNWATCHED
from bench.workloads import (
    BFLOAT16,
    CELL,
    DENSE,
    DOUBLE,
    FLOAT16,
    GRID,
    INFERENCE,
    LAST_STEP,
    PACKED,
    STEPPING,
    TRAINING,
    Workload,
)

TINY = Workload("tiny", DENSE, 3, 4, 5, (6,))

ENVIRONMENT = {
    "date": "2030-01-02T03:04:05+00:00",
    "command": "python -m bench",
    "fused_lstm": "1.2.3",
    "commit": "abc1234",
    "torch": "2.99.0+cpu",
    "python": "3.11.0",
    "cpu": "Some Processor 9000",
    "cpu_kind": "GenuineIntel 6 143",
    "cores": 2,
    "device": "cpu",
    "threads": 2,
    "isa": "avx512",
    "isa_cap": "",
    "amx": False,
    "fp32_precision": {"tf32": "float32", "bf16": "float32 with products of bfloat16"},
    "machine": {
        "threads": 2,
        "flops": 4.0e11,
        "l1_bytes": 2**15,
        "l2_bytes": 2**21,
        "shared_bytes": 2**25,
        "l2_rate": 2.0e11,
        "shared_rate": 4.0e10,
        "memory_rate": 2.0e10,
    },
    "build": None,
}

# With the widest names, sizes and times that there are.
WORKLOADS = {
    "single": Workload("single", DENSE, 1, 50, 128, (128,)),
    "square": Workload("square", DENSE, 64, 50, 512, (512,)),
    "awd_lstm": Workload(
        "awd_lstm", DENSE, 15, 70, 300, (1150, 1150, 650), note="without weight drop"
    ),
    "packed": Workload("rnnt_layernorm, packed", PACKED, 8, 50, 512, (512,), layers=3, packed=True),
    "float64": Workload("medium, float64", DOUBLE, 32, 100, 128, (256,), dtype=torch.float64),
    "float16": Workload("small, float16", FLOAT16, 8, 50, 64, (128,), dtype=torch.float16),
    "bfloat16": Workload("single, bfloat16", BFLOAT16, 1, 50, 8, (8,), dtype=torch.bfloat16),
    "cell": Workload("cell, 1 x 128", CELL, 1, 20, 128, (128,), cell=True),
    "step": Workload("step", STEPPING, 1, 1, 128, (128,), calls=200, modes=(INFERENCE,)),
    "hydrology": Workload("hydrology", LAST_STEP, 256, 365, 15, (256,), last_step=True),
    "all steps": Workload("hydrology, all steps", DENSE, 256, 365, 15, (256,)),
}


def one_call_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at no time: nor are memory and cores looked at."""
    monkeypatch.setattr(runner, "SHORTEST_BLOCK", 0.0)
    monkeypatch.setattr(runner, "peak_memory", lambda *arguments: None)
    for module in (runner, disturbed):
        monkeypatch.setattr(module, "watch", lambda *arguments: UNWATCHED)


def failing_after(calls: int) -> Provider:
    """fused_lstm, with an error in a later call."""

    def prepare(problem, mode):
        right, left = PROVIDERS[FUSED].prepare(problem, mode), [calls]

        def run():
            left[0] -= 1
            if left[0] < 0:
                raise ValueError("a later call\nfails")
            right.run()

        return Prepared(run, right.check)

    return replace(PROVIDERS[FUSED], prepare=prepare)


def workload(name: str = "single", /, **fields: object) -> Workload:
    return WORKLOADS[name] if not fields else Workload(**{**vars(WORKLOADS[name]), **fields})


def around(seconds: float, width: float = 0.02) -> list[float]:
    """Five rounds: the median and 2 % around it."""
    return [seconds * (1 + width * k) for k in (-2, -1, 0, 1, 2)]


def result(
    ratio: float,
    name: str | Workload = "single",
    mode: str = INFERENCE,
    others: dict[str, Measurement] | None = None,
    ours: float = 12.3456e-3,
    **fields: object,
) -> Result:
    """A row whose fused_lstm takes `ours` seconds and whose nn.LSTM `ratio` times as long."""
    measurements = {
        "nn.LSTM": Measurement(around(ratio * ours), 123456789, None, 1.0e-7, 1.0, 0.4),
        "fused_lstm": Measurement(around(ours), 98765432, None, 1.5e-7, 1.5, 0.6),
        **(others or {}),
    }
    row = name if isinstance(name, Workload) else WORKLOADS[name]
    limit = fields.pop("limit", Limit(0.5 * ours, "multiply-adds", 1.0e8))
    return Result(row, mode, 2, measurements, limit, **fields)


def grid() -> list[Result]:
    return [
        result(0.9 + 0.1 * batch, Workload(f"grid, {batch} x {h}", GRID, batch, 50, h, (h,)), mode)
        for batch in (1, 4, 16)
        for h in (64, 1024)
        for mode in (INFERENCE, TRAINING)
    ]


def full_run(**environment: object) -> Run:
    """Every kind of row that a table or picture shows."""
    padded = {"padded": Measurement(around(1.7 * 12.3456e-3), 1000, error=1e-7, error_ratio=1.0)}
    wrong = {"linear": Measurement(error=0.3, error_ratio=3e6, failed="wrong: y is off by 3.0e-01")}
    compiled = {"compile": Measurement(around(20e-3), None, 134.0, 1e-7, 1.0)}
    rows = []
    for mode, ratio in ((INFERENCE, 1.25), (TRAINING, 2.5)):
        rows += [
            result(ratio, "single", mode, wrong),
            result(0.9, "square", mode, compiled),
            result(12.345, "awd_lstm", mode, ours=9.996),
            result(ratio, "packed", mode, padded),
            result(ratio, "float16", mode, {"float32": Measurement(around(13e-3))}),
            result(ratio, "cell", mode, ours=9.9996e-4),
        ]
    rows += [result(5.0, "step", ours=25.04e-6), *grid()]
    busy = Workload("small, one core busy", "one core busy", 8, 50, 64, (128,), busy_core=True)
    alone = {"nn.LSTM": 3.0e-3, "fused_lstm": 2.0e-3}
    slowdowns = {"nn.LSTM": [2.0, 2.1, 2.2, 2.3, 2.4, 3.5], "fused_lstm": [1.5] * 5 + [2.75]}
    disturbances = [Disturbance(busy, TRAINING, 2, alone, slowdowns)]
    return Run({**ENVIRONMENT, **environment}, rows, disturbances)


class Extension(SimpleNamespace):
    """What the extension says of a machine: 100 multiply-adds a ns and core."""

    def __init__(self, **others: object) -> None:
        super().__init__(**others)

    def cpu_machine(self, dtype: str, threads: int) -> dict[str, float]:
        return {
            "l2_bytes": 2**20,
            "shared_bytes": 2**24,
            "l2_rate": 50.0,
            "shared_rate": 25.0,
            "shared_rate_all": 20.0,
        }

    def read_rate(self, size: int, threads: int) -> float:
        return 5.0 * threads

    def fma_peak(self, threads: int, dtype: str = "float32") -> float:
        return 200.0 * threads

    def fma_rate(self, threads: int, seconds: float) -> float:
        return 195.0 * threads

    def brgemm_rate(
        self,
        rows: int,
        columns: int,
        depth: int,
        panels: int,
        dtype: str,
        threads: int,
        trials: int = 5,
    ) -> float:
        return {"bfloat16": 500.0}.get(dtype, 180.0) * threads
