"""The same row with and without another process that keeps one core busy."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from .providers import Provider
from .results import Disturbance, spread
from .runner import Row, Turn, take_turns
from .watch import UNWATCHED, Watch, watch
from .workload import Workload

TRIES = 6  # the system places the other process anew in each, and some places are worse
# It says so when it has run for a while: until then it may wait for a core, or start up. It ends
# with the process that has started it, however that ends.
BUSY = """
import os, time
parent = os.getppid()
while time.process_time() < 0.1:
    pass
print("busy", flush=True)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """A process that does nothing but use one core, and does so from the start."""
    command = [sys.executable, "-c", BUSY]
    # Ctrl-C is for the benchmark, not for this one.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        if process.stdout.readline() != b"busy\n":
            raise RuntimeError("the process that keeps a core busy has ended")
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def medians(turns: dict[str, Turn], budget: float, cores: Watch) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for name, reason in take_turns(turns, budget, seconds, cores)[0].items():
        raise RuntimeError(f"{name}: {reason}")
    return {name: spread(each).median for name, each in seconds.items()}


def measure_disturbed(
    workload: Workload, mode: str, threads: int, providers: list[Provider], budget: float
) -> Disturbance:
    """Median times with a core taken, over those without, in several tries.

    Raises:
        RuntimeError: where a provider fails, or is wrong.
    """
    row = Row(workload, threads)
    with row.settings():
        measurements, turns = row.prepare_all(mode, providers)
        for name, each in measurements.items():
            if each.failed:
                raise RuntimeError(f"{name}: {each.failed}")
        alone = medians(turns, budget, watch(row.threads))
        slowdowns: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(TRIES):
            with busy_core():
                taken = medians(turns, budget, UNWATCHED)
            for name, seconds in taken.items():
                slowdowns[name].append(seconds / alone[name])
    return Disturbance(workload, mode, row.threads, alone, slowdowns)
