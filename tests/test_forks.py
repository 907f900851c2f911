"""Processes that fork while others of their threads compute."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no process")

# One thread measures the machine for ever other kernels, and holds what it measured under a lock.
MEASURING = """
import os, threading, time
import torch
import fused_lstm
from fused_lstm import _ops

extension = _ops.extension
begun = threading.Event()

def measure():
    begun.set()
    for threads in range(1, 30):
        for dtype in ("float64", "float32"):
            extension.cpu_machine(dtype, threads=threads)

module, x = fused_lstm.LSTM(3, 4), torch.randn(2, 3, 3)
thread = threading.Thread(target=measure)
thread.start()
begun.wait()
forks = 0
while thread.is_alive() and forks < 20:
    child = os.fork()
    if child == 0:
        with torch.no_grad():
            module(x)
        extension.cpu_machine("float64", threads=64)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    forks += 1
    time.sleep(0.002)
print(forks)
os._exit(0)
"""


def test_a_fork_while_the_machine_is_measured(extension):
    """The child waits for no lock of a thread, and for no team, that did not come along."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURING],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 5
