"""The benchmark's command line: what it prints and keeps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")

import bench_fakes as fakes

from bench import results, runner, suite
from bench.runner import Row
from bench.workloads import INFERENCE, TRAINING

ROOT = Path(__file__).parent.parent


@pytest.fixture
def budgets():
    """Seconds that each row was given."""
    return []


@pytest.fixture
def rounds():
    """Rounds that each row was to have at least."""
    return []


@pytest.fixture
def micro_kernel():
    """Rows that were held against oneDNN's."""
    return []


@pytest.fixture
def measured(monkeypatch, budgets, rounds, micro_kernel):
    """Rows take no time: a ratio of 2 everywhere. Yields the rows that were asked for."""
    asked = []

    def measure(self, mode, providers, budget, brgemm, least):
        asked.append((self.workload.name, mode))
        if brgemm:
            micro_kernel.append((self.workload.name, mode))
        budgets.append(budget)
        rounds.append(least)
        return fakes.result(2.0, self.workload, mode)

    monkeypatch.setattr(Row, "__init__", lambda self, row, *rest: setattr(self, "workload", row))
    monkeypatch.setattr(Row, "measure", measure)
    monkeypatch.setattr(suite, "busy_cores", lambda: 0.0)
    monkeypatch.setattr(suite._ops, "unavailable", lambda device, dtype: None)
    return asked


def test_a_run_prints_and_writes(measured, tmp_path, capsys):
    file = tmp_path / "folder" / "new.json"
    code = suite.main("bench", ["--workload", "single", "medium", "--json", str(file)])
    assert code == 0
    said = capsys.readouterr().out
    assert said.startswith("With fused_lstm, training on this machine is 2.00 times faster")
    assert "Bars" not in said
    assert "Rates and memory" not in said
    assert f"written to {file}" in said.replace("\n", "")
    run = results.load(file)
    assert [(r.workload.name, r.mode) for r in run.results] == measured
    assert len(measured) == 4
    assert run.environment["command"].startswith("python -m bench --workload single medium")


def test_a_budget_of_nothing_is_none(measured, budgets):
    for arguments in (["--budget", "0"], [], ["--quick"]):
        suite.main("bench", ["--workload", "single", "--mode", "inference", *arguments])
    assert budgets == [0, suite.BUDGET, suite.QUICK_BUDGET]


def test_rows_with_a_bar_near_equality_have_more_rounds(measured, budgets, rounds):
    """Only where bars are asked for: "single" is run by the fallback then, "square" is not."""
    names = ["--workload", "single", "square", "--mode", "training", "--budget", "2"]
    suite.main("bench", names)
    assert (rounds, budgets) == ([runner.LEAST_ROUNDS] * 2, [2, 2])
    suite.main("bench", [*names, "--bars"])
    assert (rounds[2:], budgets[2:]) == ([30, runner.LEAST_ROUNDS], [10, 2])


def test_rows_with_a_bar_are_held_against_the_micro_kernel(measured, micro_kernel):
    names = ["--workload", "single", "square"]
    suite.main("bench", names)
    assert micro_kernel == []
    suite.main("bench", [*names, "--bars"])
    assert micro_kernel == [("square", INFERENCE), ("square", TRAINING)]


def test_details_and_bars_on_request(measured, capsys):
    assert suite.main("bench", ["--workload", "single", "--details", "--bars"]) == 0
    said = capsys.readouterr().out
    assert "Rates and memory" in said
    assert "Largest error against float64" in said
    assert "slowest row, float32" in said
    assert "float64 peak" not in said
    assert "busy" not in said


def test_ctrl_c_keeps_what_is_done(measured, monkeypatch, tmp_path, capsys):
    measure = Row.measure

    def interrupted(self, *arguments):
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(Row, "measure", interrupted)
    file = tmp_path / "part.json"
    code = suite.main("bench", ["--workload", "single", "medium", "--json", str(file)])
    assert code == 130
    said = capsys.readouterr().out
    assert "Not complete" in said
    run = results.load(file)
    assert len(run.results) == 3
    assert run.complete is False


def test_an_error_in_a_row_loses_no_other(measured, monkeypatch, tmp_path, capsys):
    """What was measured is in the file from then on."""
    measure, file, kept = Row.measure, tmp_path / "part.json", []

    def failing(self, *arguments):
        found = measure(self, *arguments)
        kept.append(len(results.load(file).results) if file.exists() else 0)
        if len(measured) == 2:
            raise MemoryError("no more\nthan this")
        return found

    monkeypatch.setattr(Row, "measure", failing)
    assert suite.main("bench", ["--workload", "single", "medium", "--json", str(file)]) == 1
    said = capsys.readouterr()
    assert said.err == "single, training: MemoryError: no more\n"
    assert "Not complete" in said.out
    assert kept == [0, 1, 1, 2]
    assert len(results.load(file).results) == 3
    assert results.load(file).complete is False


@pytest.mark.parametrize("name", [".", "file/below.json", 252 * "x"])
def test_a_file_that_cannot_be_written_is_refused_first(measured, tmp_path, capsys, name):
    (tmp_path / "file").write_text("kept")
    code = suite.main("bench", ["--workload", "single", "--json", str(tmp_path / name)])
    assert code == 1
    assert f"cannot write to {tmp_path / name}: " in capsys.readouterr().err
    assert not measured
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_file_is_written_as_a_whole_or_not_at_all(monkeypatch, tmp_path):
    file = tmp_path / "run.json"
    results.save(file, {"is": "old"})

    def half(path, text):
        path.open("w").write(text[:3])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space"):
        results.save(file, {"is": "new"})
    assert json.loads(file.read_text()) == {"is": "old"}


def test_a_full_disk_loses_no_table(measured, monkeypatch, tmp_path, capsys):
    def full(path, values):
        raise OSError("no space left")

    monkeypatch.setattr(results, "save", full)
    file = tmp_path / "run.json"
    assert suite.main("bench", ["--workload", "single", "--json", str(file)]) == 1
    said = capsys.readouterr()
    assert "2.00 times faster" in said.out
    assert "written to" not in said.out
    assert "cannot write to" in said.err


def test_ctrl_c_before_the_first_row_is_no_traceback(measured, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "environment", interrupted)
    assert suite.main("bench", ["--workload", "single"]) == 130


def test_compare_reads_the_old_run_first(measured, tmp_path, capsys):
    code = suite.main("bench", ["--workload", "single", "--compare", str(tmp_path / "no.json")])
    assert code == 1
    assert "cannot compare with" in capsys.readouterr().err
    assert not measured


def test_compare_with_a_run(measured, tmp_path, capsys):
    file = tmp_path / "old.json"
    assert suite.main("bench", ["--workload", "single", "--json", str(file)]) == 0
    assert suite.main("bench", ["--workload", "single", "--compare", str(file)]) == 0
    assert "Of 2 rows in both runs 0 got slower and 0 faster" in capsys.readouterr().out


def test_isa_starts_anew_once(measured, monkeypatch):
    started = []
    monkeypatch.setattr(suite, "run_capped", lambda *arguments: started.append(arguments))
    arguments = ["--workload", "single", "--isa", "avx2"]
    suite.main("bench", arguments)
    assert started == [("avx2", "bench", arguments)]
    monkeypatch.setattr(suite, "cap_in_force", lambda: "avx2")
    assert suite.main("bench", arguments) == 0
    assert len(started) == 1


def test_nothing_to_measure_is_said(monkeypatch, capsys):
    monkeypatch.setattr(suite._ops, "unavailable", lambda device, dtype: "it is not built")
    assert suite.main("fused_lstm.bench", ["--quick"]) == 1
    assert capsys.readouterr().err == (
        "python -m fused_lstm.bench: there is nothing to measure: it is not built\n"
    )


def test_busy_machine_is_said(monkeypatch, capsys):
    for busy in (0.1, None):
        monkeypatch.setattr(suite, "busy_cores", lambda busy=busy: busy)
        suite.warn_if_busy()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(suite, "busy_cores", lambda: 0.9)
    suite.warn_if_busy()
    assert capsys.readouterr().err == "other processes use 0.9 cores: times will be off\n"


def test_list_names_every_row_and_its_source(capsys):
    assert suite.main("bench", ["--list", "--grid"]) == 0
    said = capsys.readouterr().out
    for text in ("silero-vad", "benchmarks/fastrnns", "grid, 128 x 1024"):
        assert text in said


@pytest.mark.slow
def test_a_real_run_writes_json(tmp_path, extension):
    file = tmp_path / "bench.json"
    rows = ["small", "small, packed", "small, float16", "small, one core busy"]
    command = [sys.executable, "-m", "bench", "--budget", "0.01", "--bars", "--json", str(file)]
    run = subprocess.run(
        [*command, "--workload", *rows], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    written = json.loads(file.read_text())
    assert written["environment"]["torch"] == torch.__version__
    assert {r["workload"]["name"] for r in written["results"]} == set(rows[:3])
    for each in written["results"]:
        assert each["times_faster_than"]["nn.LSTM"]["median"] > 0
    assert written["one_core_busy"][0]["slowdowns"]["fused_lstm"]
    assert written["bars"]


@pytest.mark.slow
def test_capped_to_avx2_in_a_process_of_its_own(tmp_path, extension):
    if "avx2" not in extension.build_info()["compiled_isas"]:
        pytest.skip("no AVX2 kernels are compiled")
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "bench", "--isa", "avx2", "--json", str(file)]
    options = ["--workload", "single", "--mode", "inference", "--budget", "0.01"]
    environment = {k: v for k, v in os.environ.items() if k != "FUSED_LSTM_ISA"}
    subprocess.run(
        [*command, *options],
        cwd=ROOT,
        check=True,
        timeout=300,
        capture_output=True,
        env=environment,
    )
    written = json.loads(file.read_text())
    assert written["environment"]["isa_cap"] == "avx2"
    assert written["environment"]["isa"] in ("avx2", "baseline")
