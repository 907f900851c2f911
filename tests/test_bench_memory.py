"""Peak memory in the benchmark: of a first call, which finds nothing that another has freed."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import lines_said

pytest.importorskip("rich")

from bench import memory
from bench.memory import peak_memory
from bench.problem import Problem, make_problem
from bench.providers import BASELINE, FUSED, PROVIDERS
from bench.workloads import DENSE, INFERENCE, MEMBERS, STEPPING, TRAINING, Workload

ROOT = Path(__file__).parent.parent
T, B, H = 60, 16, 256
ROW = Workload("row", DENSE, B, T, 64, (H,))
OUTPUT, GATES = 4 * T * B * H, 4 * 4 * T * B * H  # bytes

needs_peaks = pytest.mark.skipif(not memory.can_watch(), reason="this system cannot reset a peak")


def peak(name: str, row: Workload = ROW, mode: str = TRAINING) -> int:
    problem = make_problem(row, 2)
    return peak_memory(PROVIDERS[name], problem, mode, lambda: None)


@needs_peaks
def test_training_holds_its_output_and_the_saved_gates(extension):
    """Also where this process has memory that earlier calls have given back."""
    run = PROVIDERS[FUSED].prepare(make_problem(ROW, 2), TRAINING).run
    run()
    assert extension.memory_pool()["idle"] >= GATES
    assert peak(FUSED) >= OUTPUT + GATES
    assert OUTPUT <= peak(FUSED, mode=INFERENCE) < OUTPUT + GATES
    assert peak(BASELINE) >= OUTPUT + GATES


@needs_peaks
def test_settings_and_threads_are_those_of_the_row(monkeypatch):
    """In this process, where they can be seen."""
    seen = []

    def prepare(problem: Problem, mode: str):
        return PROVIDERS[FUSED].prepare(problem, mode)

    def peak_of(run) -> int:
        seen.append((torch.get_num_threads(), torch.backends.mkldnn.rnn.fp32_precision))
        return len(seen)

    monkeypatch.setitem(PROVIDERS, "tf32", replace(PROVIDERS["tf32"], prepare=prepare))
    monkeypatch.setattr(memory, "peak_of", peak_of)
    assert memory.first_peak("tf32", ROW, INFERENCE, 1) == 2  # after a small call
    assert seen == [(1, "tf32")] * 2


@pytest.mark.parametrize(
    "row",
    [
        replace(ROW, packed=True, proj=32, layers=2),
        replace(ROW, hidden=(256, 128), bidirectional=True),
        Workload("row", MEMBERS, 64, 50, 128, (128,), members=16),
        Workload("row", STEPPING, 8, 1, 512, (128,), calls=100, modes=(INFERENCE,)),
    ],
    ids=["packed", "two sizes", "members", "steps"],
)
def test_a_small_call_is_of_the_same_kind_and_leaves_nothing(row, extension):
    small = memory.small(row)
    same = ("dtype", "packed", "bidirectional", "members", "layers", "modes")
    assert all(getattr(small, name) == getattr(row, name) for name in same)
    assert len(small.hidden) == len(row.hidden)
    assert bool(small.proj) == bool(row.proj)
    before = extension.memory_pool()
    PROVIDERS[FUSED].prepare(make_problem(small, 2), small.modes[-1]).run()
    assert extension.memory_pool() == before


@needs_peaks
def test_peak_is_of_the_call() -> None:
    def run() -> None:
        torch.ones(20_000_000)  # 80 MB, freed at once

    run()
    assert 75e6 < memory.peak_of(run) < 100e6
    assert memory.peak_of(lambda: None) < 5e6


@needs_peaks
def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="unflatten"):
        peak(FUSED, replace(ROW, members=7))


@needs_peaks
def test_no_process_for_memory_hears_ctrl_c():
    """Nor the one that all are forked from, which starts with megabytes of imports."""
    code = """
import os, signal, time
from multiprocessing import forkserver
from bench import memory
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have had it ignored
memory.start_server()
os.kill(forkserver._forkserver._forkserver_pid, signal.SIGINT)
time.sleep(0.5)
print(os.waitpid(forkserver._forkserver._forkserver_pid, os.WNOHANG))
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert (run.stdout, lines_said(run.stderr)) == ("(0, 0)\n", [])


@needs_peaks
def test_ctrl_c_waits_for_the_process(monkeypatch):
    ended, before = [], signal.getsignal(signal.SIGINT)

    class Pool(memory.ProcessPoolExecutor):
        def submit(self, *arguments):
            signal.raise_signal(signal.SIGINT)
            future = super().submit(*arguments)
            future.add_done_callback(ended.append)
            return future

    monkeypatch.setattr(memory, "ProcessPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        peak(FUSED)
    assert [future.exception() for future in ended] == [None]
    assert signal.getsignal(signal.SIGINT) is before


def test_unknown_memory_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "no" / "such")
    assert peak(FUSED) is None


def test_nothing_is_compiled_again_for_its_memory():
    for name in ("compile", "fused-compile"):
        assert peak(name) is None
