"""Processes that fork while others of their threads compute."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no process")

# One thread measures the machine for ever other numbers of threads and types, without Python's own
# lock and under one of the package's.
MEASURING = """
import os, threading, time
import torch
import fused_lstm
from fused_lstm import _ops

begun = threading.Event()
module, x = fused_lstm.LSTM(3, 4), torch.randn(2, 3, 3)
double = fused_lstm.LSTM(3, 4).double()

def measure():
    begun.set()
    with torch.no_grad():
        for threads in range(2, 12):
            torch.set_num_threads(threads)
            module(x)
            double(x.double())

torch.set_num_threads(2)
with torch.no_grad():
    fused_lstm.LSTM(64, 256)(torch.randn(20, 32, 64))
assert _ops.extension.last_cpu_plan()["threads"] == 2  # this thread has a pool, the child has none
thread = threading.Thread(target=measure)
thread.start()
begun.wait()
forks = 0
while thread.is_alive() and forks < 20:
    child = os.fork()
    if child == 0:
        with torch.no_grad():
            module(x)
        _ops.extension.cpu_machine(threads=2, batch=1)
        _ops.extension.cpu_machine("float64", threads=3)
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
