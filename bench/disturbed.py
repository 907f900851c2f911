"""The same case with and without another process that keeps one core busy."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from bench.passes import make_grad, make_timed
from bench.providers import BASELINE, make_input, make_models
from bench.runner import Timing, interleave, thread_count
from bench.workloads import Workload


@dataclass(frozen=True)
class Disturbance:
    workload: Workload
    mode: str
    alone: dict[str, Timing]
    disturbed: dict[str, Timing]

    def slowdown(self, provider: str) -> float:
        return self.disturbed[provider].median / self.alone[provider].median


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """A process that does nothing but use one core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure_disturbed(workload: Workload, mode: str, threads: int, budget: float) -> Disturbance:
    models, x = make_models(workload), make_input(workload)
    grad = make_grad(models[BASELINE], x, workload)
    functions = {name: make_timed(model, x, grad, workload, mode) for name, model in models.items()}
    with thread_count(threads):
        alone = interleave(functions, workload.calls, budget)
        with busy_core():
            disturbed = interleave(functions, workload.calls, budget)
    return Disturbance(workload, mode, alone, disturbed)
