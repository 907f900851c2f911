"""The most memory that a call holds, above what was there before."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.benchmark.utils.timer import timer

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def status(name: str) -> int:
    """Bytes, of a line such as "VmRSS:  1234 kB"."""
    lines = STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def give_back_freed() -> None:
    """What was freed goes back to the system, else a call would use it again unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def run_and_watch(run: Callable[[], object], device: str) -> tuple[float, int | None]:
    """Seconds of one call, and its peak memory in bytes; None where the system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:
        give_back_freed()
        try:
            CLEAR.write_text("5")  # the peak is from here on
            before = status("VmRSS")
        except OSError:  # not Linux, or not allowed
            before = None

        def peak() -> int:
            return status("VmHWM")

    start = timer()
    run()
    elapsed = timer() - start
    return elapsed, None if before is None else max(0, peak() - before)
