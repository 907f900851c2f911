"""The benchmark's command line: what it chooses, refuses, prints and keeps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")

import bench_fakes as fakes

from bench import options, results, suite
from bench.runner import Row
from bench.workloads import GRID, INFERENCE, TRAINING

ROOT = Path(__file__).parent.parent


def chosen(*arguments):
    return [row.name for row in options.chosen_workloads(parse(*arguments))]


def parse(*arguments):
    return options.parse("bench", list(arguments))


def providers_of(*arguments):
    return {
        case.mode: [p.name for p in case.providers] for case in options.cases(parse(*arguments))
    }


# Choosing


def test_all_rows_but_the_grid_by_default():
    rows = options.chosen_workloads(parse())
    assert len(rows) > 35
    assert not any(row.group == GRID for row in rows)
    assert len(options.chosen_workloads(parse("--grid"))) == len(rows) + 25


def test_rows_by_name_or_by_a_part_of_it():
    assert chosen("--workload", "small") == ["small"]
    assert chosen("--workload", "ATARI") == ["atari", "atari, rollout"]
    assert "medium, packed" in chosen("--workload", "random lengths")
    assert chosen("--workload", "single", "square") == ["single", "square"]
    assert len(chosen("--workload", "grid")) == 25


def test_quick_is_a_few_rows():
    assert 4 <= len(chosen("--quick")) <= 8


def test_modes():
    assert set(providers_of("--workload", "small")) == {INFERENCE, TRAINING}
    assert set(providers_of("--workload", "small", "--mode", "training")) == {TRAINING}
    assert set(providers_of("--workload", "small", "--mode", "forward")) == {"forward"}


def test_rows_in_another_dtype():
    rows = options.chosen_workloads(parse("--dtype", "bfloat16"))
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert all(row.dtype == torch.bfloat16 for row in rows)
    assert names.count("medium, bfloat16") == 1
    assert "demucs, bfloat16" in names
    assert not any("float64" in name for name in names)
    groups = {row.name: row.group for row in rows}
    assert groups["demucs, bfloat16"] == "bfloat16"
    assert groups["small, packed, bfloat16"] != "bfloat16"


def test_other_forms_of_nn_lstm_by_default():
    packed = providers_of("--workload", "small, packed")
    assert packed[INFERENCE] == ["nn.LSTM", "fused_lstm", "padded", "lengths"]
    half = providers_of("--workload", "small, float16")
    assert half[TRAINING] == ["nn.LSTM", "fused_lstm", "float32"]
    assert providers_of("--workload", "small")[INFERENCE] == ["nn.LSTM", "fused_lstm"]


def test_what_nn_lstm_lacks_is_measured_by_default():
    plain = ["nn.LSTM", "fused_lstm"]
    resets = [*plain, "resets", "reset-loop"]
    assert providers_of("--workload", "rl_resets") == {INFERENCE: resets, TRAINING: resets}
    assert providers_of("--workload", "rl_resets, 8") == {INFERENCE: resets, TRAINING: resets}
    assert providers_of("--workload", "step") == {INFERENCE: [*plain, "stream"]}
    long = {INFERENCE: plain, TRAINING: [*plain, "recompute"]}
    assert providers_of("--workload", "long") == long
    assert providers_of("--workload", "rl_resets", "--provider", "linear")[TRAINING] == ["linear"]


def test_providers_by_name():
    found = providers_of("--workload", "small", "--provider", "linear", "fused_lstm")
    assert found[TRAINING] == ["fused_lstm", "linear"]
    everything = providers_of("--workload", "small", "--provider", "all")[TRAINING]
    assert set(everything) >= {"nn.LSTM", "fused_lstm", "linear", "compile", "one-thread"}


def test_others_are_the_rivals_beside_what_runs_anyhow(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # every engine is there
    small = providers_of("--workload", "small", "--provider", "others")
    rivals = ["linear", "script", "compile"]
    assert small[TRAINING] == ["nn.LSTM", "fused_lstm", *rivals]
    assert small[INFERENCE] == ["nn.LSTM", "fused_lstm", *rivals, "onnxruntime", "openvino"]
    packed = providers_of("--workload", "small, packed", "--provider", "others", "one-thread")
    assert packed[TRAINING] == ["nn.LSTM", "fused_lstm", "padded", "lengths", "one-thread"]


def test_bars_bring_the_providers_that_they_compare():
    plain = providers_of("--workload", "single, long")
    with_bars = providers_of("--workload", "single, long", "--bars")
    assert set(with_bars[INFERENCE]) - set(plain[INFERENCE]) == {"one-thread", "bf16"}
    square = providers_of("--workload", "square, bfloat16", "--bars")
    assert "autocast" in square[TRAINING]


def test_a_busy_core_is_for_the_two():
    found = providers_of("--workload", "small, one core busy", "--provider", "all")
    assert found == {TRAINING: ["nn.LSTM", "fused_lstm"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "0"], "--threads has to be at least 1, got 0"),
        (["--threads", "two"], "invalid int value: 'two'"),
        (["--workload", "no such row"], "no row is left of 'no such row'; --list shows all"),
        (["--workload", "single", "no such row"], "no row is left of 'no such row'"),
        (["--mode", "inference", "--workload", "hydrology"], "no row is left of 'hydrology'"),
        (["--mode", "forward", "--workload", "small", "step"], "no row is left of 'step'"),
        (["--quick", "--dtype", "float64", "--workload", "f16"], "no row is left of 'f16'"),
        (["--provider", "cudnn"], "invalid choice: 'cudnn'"),
        (["--provider", "padded", "--workload", "small"], "none of these rows: only for packed"),
        (["--provider", "nn.LSTM", "stream", "--workload", "small"], "stream runs none of these"),
        (["--provider", "linear", "--workload", "small, one core busy"], "a busy core is for"),
        (["--provider", "linear", "--device", "cuda"], "a GPU times nn.LSTM and fused_lstm only"),
        (["--device", "cuda", "--quick"], "--quick, --grid and --bars are of rows on the CPU"),
        (["--device", "cuda", "--grid"], "are of rows on the CPU"),
        (["--device", "cuda", "--bars"], "are of rows on the CPU"),
        (["--quick", "--grid"], "--quick leaves the grid out"),
        (["--budget", "-1"], "--budget has to be a number of seconds, got -1.0"),
        (["--budget", "nan"], "--budget has to be a number of seconds, got nan"),
        (["--dtype", "float8"], "invalid choice: 'float8'"),
        (["--device", "cuda", "--isa", "avx2"], "--isa caps processors"),
    ],
)
def test_what_cannot_be_is_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as error:
        parse(*arguments)
    assert error.value.code == 2
    assert said in capsys.readouterr().err


# Running


@pytest.fixture
def budgets():
    """Seconds that each row was given."""
    return []


@pytest.fixture
def micro_kernel():
    """Rows that were held against oneDNN's."""
    return []


@pytest.fixture
def measured(monkeypatch, budgets, micro_kernel):
    """Rows take no time: a ratio of 2 everywhere. Yields the rows that were asked for."""
    asked = []

    def measure(self, mode, providers, budget, brgemm):
        asked.append((self.workload.name, mode))
        if brgemm:
            micro_kernel.append((self.workload.name, mode))
        budgets.append(budget)
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

    def interrupted(self, mode, providers, budget, brgemm):
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(self, mode, providers, budget, brgemm)

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

    def failing(self, mode, providers, budget, brgemm):
        found = measure(self, mode, providers, budget, brgemm)
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
