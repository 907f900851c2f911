"""Times the providers by turns in one process, and compares their errors."""

from __future__ import annotations

import contextlib
import statistics
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.benchmark.utils.timer import timer

from bench.accuracy import Accuracy, compare
from bench.passes import make_grad, make_timed
from bench.providers import BASELINE, FUSED, make_input, make_models
from bench.workloads import Workload

SHORTEST_BLOCK = 0.01  # seconds: far above the clock's resolution and what one block costs


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one entry per block of calls."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Result:
    workload: Workload
    mode: str
    threads: int
    timings: dict[str, Timing]
    accuracy: Accuracy

    @property
    def ratio(self) -> float:
        """How many times faster than nn.LSTM."""
        return self.timings[BASELINE].median / self.timings[FUSED].median

    def gflops(self, provider: str) -> float:
        return self.workload.flops(self.mode) / self.timings[provider].median / 1e9


@contextlib.contextmanager
def thread_count(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def float32_precision(workload: Workload) -> Iterator[None]:
    """Whether products of float32 may be rounded to TF32; for cuDNN, as for the kernels here."""
    setting = torch.backends.cudnn.rnn
    before = setting.fp32_precision
    setting.fp32_precision = "tf32" if workload.tf32 else "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = before


def interleave(functions: dict[str, Callable], calls: int, budget: float) -> dict[str, Timing]:
    """Times the functions in the order A B B A, so that a drift of the clock meets all alike.

    `calls` is what one function call counts as; rounds are added until `budget` seconds are spent.
    """
    timers = {name: timeit.Timer(function, timer=timer) for name, function in functions.items()}
    # This first call is not counted: it may allocate.
    repeats = {n: max(1, round(SHORTEST_BLOCK / t.timeit(1))) for n, t in timers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    start = timer()
    while timer() - start < budget:
        for name in [*functions, *reversed(functions)]:
            elapsed = timers[name].timeit(repeats[name])
            seconds[name].append(elapsed / repeats[name] / calls)
    return {name: Timing(each) for name, each in seconds.items()}


def measure(workload: Workload, mode: str, threads: int, budget: float, device: str) -> Result:
    """One row of the benchmark in one mode."""
    threads = workload.threads or threads
    models, x = make_models(workload, device), make_input(workload, device)
    grad = make_grad(models[BASELINE], x, workload)
    with thread_count(threads), float32_precision(workload):
        accuracy = compare(models, x, grad, workload, mode)
        functions = {
            name: make_timed(model, x, grad, workload, mode) for name, model in models.items()
        }
        timings = interleave(functions, workload.calls, budget)
    return Result(workload, mode, threads, timings, accuracy)
