"""The same row with and without another process that keeps one core busy."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from .providers import Provider
from .results import Disturbance, spread
from .runner import Row, Turn, take_turns
from .workload import Workload

TRIES = 6  # the system places the other process anew in each, and some places are worse
# It says so when it has run for a while: until then it may wait for a core, or start up.
BUSY = """
import time
while time.process_time() < 0.1:
    pass
print("busy", flush=True)
while True:
    pass
"""


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """A process that does nothing but use one core, and does so from the start."""
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    try:
        if process.stdout.readline() != b"busy\n":
            raise RuntimeError("the process that keeps a core busy has ended")
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def medians(turns: dict[str, Turn], budget: float) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    take_turns(turns, budget, seconds)
    return {name: spread(each).median for name, each in seconds.items()}


def measure_disturbed(
    workload: Workload, mode: str, threads: int, providers: list[Provider], budget: float
) -> Disturbance:
    """Median times with a core taken, over those without, in several tries."""
    row = Row(workload, threads)
    with row.settings():
        _, turns = row.prepare_all(mode, providers)
        alone = medians(turns, budget)
        slowdowns: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(TRIES):
            with busy_core():
                taken = medians(turns, budget)
            for name, seconds in taken.items():
                slowdowns[name].append(seconds / alone[name])
    return Disturbance(workload, mode, row.threads, alone, slowdowns)
