"""The most memory that a first call holds, above what was there before.

In a process of its own: what earlier calls have freed, both libraries and the allocators below them
keep for the next one, which would then use it unseen.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import torch

from .problem import Problem, make_problem
from .providers import PROVIDERS, Provider, thread_count
from .workload import Workload

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# What a process has imported from the start: torch itself does so only when it first needs it.
PRELOADED = [__name__, "torch._dynamo"]


def status(name: str) -> int:
    """Bytes, of a line such as "VmRSS:  1234 kB"."""
    lines = STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def give_back_freed() -> None:
    """What was freed goes back to the system, else a call would use it again unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def can_watch() -> bool:
    """Whether the system lets a process reset its own peak, as Linux does."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_of(run: Callable[[], object]) -> int:
    """Bytes of this process while a call runs, above those before."""
    give_back_freed()
    CLEAR.write_text("5")  # the peak is from here on
    before = status("VmRSS")
    run()
    return max(0, status("VmHWM") - before)


def small(workload: Workload) -> Workload:
    """The same kind of call, too small to leave memory that a larger one would use again."""
    return replace(
        workload,
        batch=workload.members or 2,
        steps=2,
        input=4,
        hidden=(8,) * len(workload.hidden),
        proj=4 if workload.proj else 0,
        calls=min(workload.calls, 2),
    )


def first_peak(name: str, workload: Workload, mode: str, threads: int) -> int:
    """Of a provider's first call in this process."""
    provider = PROVIDERS[name]
    with thread_count(threads), provider.settings():
        for each in (small(workload), workload):  # the first for what is set up once
            peak = peak_of(provider.prepare(make_problem(each, threads), mode).run)
    return peak


def start_server() -> None:
    """What every such process is forked from. All of them leave Ctrl-C to the one that asks."""
    forkserver.set_forkserver_preload(PRELOADED)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the new process has it from here
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def ctrl_c_later() -> Iterator[None]:
    """A process that is about to start is waited for, else it misses what it was to be told."""
    asked: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if asked:
        raise KeyboardInterrupt


def be_quiet() -> None:
    """The process that asks has warned already."""
    warnings.simplefilter("ignore")


def peak_on_gpu(run: Callable[[], object]) -> int:
    """Of tensors, wherever their memory was before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def peak_memory(
    provider: Provider, problem: Problem, mode: str, run: Callable[[], object]
) -> int | None:
    """Bytes; None where the system does not tell, or `run` would have to be compiled again."""
    if problem.device.type == "cuda":
        return peak_on_gpu(run)
    if provider.compiles or not can_watch():
        return None
    asked = (provider.name, problem.workload, mode, problem.threads)
    with ctrl_c_later():
        start_server()
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(1, context, be_quiet) as process:
            return process.submit(first_peak, *asked).result()
