"""Rows of the benchmark beside a process that keeps one core busy."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rich")

import bench_fakes
from bench_fakes import failing_after

from bench import disturbed, environment
from bench.providers import BASELINE, FUSED, PROVIDERS
from bench.workloads import DENSE, INFERENCE, TRAINING, Workload

ROOT = Path(__file__).parent.parent
BOTH = [PROVIDERS[BASELINE], PROVIDERS[FUSED]]
BUSY_ROW = Workload("tiny", DENSE, 3, 4, 5, (6,), busy_core=True)


@pytest.fixture(autouse=True)
def _one_call_a_round(monkeypatch):
    bench_fakes.one_call_a_round(monkeypatch)


@pytest.fixture
def started():
    """What became of each busy process."""
    return []


@pytest.fixture
def no_process(monkeypatch, started):
    """In place of a busy process, a note that it is there."""

    @contextlib.contextmanager
    def busy_core():
        started.append("busy")
        yield
        started[-1] = "over"

    monkeypatch.setattr(disturbed, "busy_core", busy_core)


def test_the_busy_process_runs_before_anything_is_timed(monkeypatch):
    started = []
    popen = subprocess.Popen

    def remember(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remember)
    with disturbed.busy_core():
        (process,) = started
        assert process.poll() is None
        assert environment.busy_cores() is None or environment.busy_cores() > 0.3
    assert process.poll() is not None


def test_the_busy_process_says_when_it_runs(monkeypatch):
    late = "import time; time.sleep(0.3); print('busy', flush=True); time.sleep(60)"
    monkeypatch.setattr(disturbed, "BUSY", late)
    start = time.perf_counter()
    with disturbed.busy_core():
        assert time.perf_counter() - start > 0.3
    monkeypatch.setattr(disturbed, "BUSY", "")
    with pytest.raises(RuntimeError, match="has ended"), disturbed.busy_core():
        pass


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="not Linux")
def test_the_busy_process_hears_no_ctrl_c_and_does_not_outlive_the_benchmark():
    code = """
import os
from bench import disturbed
busy = disturbed.busy_core()
busy.__enter__()
process = busy.gen.gi_frame.f_locals["process"]
print(process.pid, os.getpgid(process.pid) != os.getpgid(0), flush=True)
os._exit(0)
"""
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT).stdout
    pid, apart = said.split()
    assert apart == "True"
    deadline = time.monotonic() + 20
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(pid)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("calls", [0, 5])
def test_a_busy_core_without_a_right_result_is_an_error(calls):
    with pytest.raises(RuntimeError, match="fused_lstm: ValueError: a later call"):
        disturbed.measure_disturbed(
            BUSY_ROW, INFERENCE, 1, [BOTH[0], failing_after(calls)], budget=0
        )


@pytest.mark.usefixtures("no_process")
def test_busy_core_takes_six_tries():
    found = disturbed.measure_disturbed(BUSY_ROW, TRAINING, 1, BOTH, budget=0)
    assert {name: len(each) for name, each in found.slowdowns.items()} == {BASELINE: 6, FUSED: 6}
    assert all(seconds > 0 for seconds in found.alone.values())


@pytest.mark.usefixtures("no_process")
def test_a_slowdown_is_the_time_beside_a_busy_core_over_that_without(monkeypatch, started):
    """The times of a process that is there, and of one that is not."""
    alone, beside = {BASELINE: 2.0, FUSED: 4.0}, {BASELINE: 5.0, FUSED: 6.0}
    monkeypatch.setattr(disturbed, "medians", lambda *_: beside if "busy" in started else alone)
    found = disturbed.measure_disturbed(BUSY_ROW, TRAINING, 1, BOTH, budget=0)
    assert found.alone == alone
    assert found.slowdowns == {BASELINE: [2.5] * 6, FUSED: [1.5] * 6}
    assert started == ["over"] * 6
