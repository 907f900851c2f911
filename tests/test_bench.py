"""The benchmark: its rows, how it times, what it counts as an error, which bars it calls met."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

pytest.importorskip("rich")

import bench.__main__ as bench_main
from bench import bars, floor, passes, report, runner
from bench.accuracy import Accuracy, compare
from bench.disturbed import Disturbance
from bench.providers import BASELINE, FUSED, make_input, make_models, rows_of
from bench.runner import Result, Timing
from bench.workloads import (
    ALL_MODES,
    BFLOAT16,
    DENSE,
    DOUBLE,
    INFERENCE,
    PACKED,
    PROJECTION,
    TRAINING,
    Workload,
    cpu_workloads,
    cuda_workloads,
    quick_workloads,
)
from fused_lstm import _ops

ROOT = Path(__file__).parent.parent
TINY = Workload("tiny", DENSE, 3, 4, 5, (6,))


def result(ratio, group=DENSE, mode=INFERENCE, name="row", error_ratio=1.0):
    workload = Workload(name, group, 3, 4, 5, (6,))
    timings = {BASELINE: Timing([ratio * 1e-3]), FUSED: Timing([1e-3])}
    accuracy = Accuracy({BASELINE: 1e-7, FUSED: 1e-7}, error_ratio)
    return Result(workload, mode, 1, timings, accuracy)


def test_every_row_has_its_own_name():
    names = [row.name for row in cpu_workloads()]
    assert len(set(names)) == len(names)
    assert {row.name for row in quick_workloads()} < set(names)


def test_published_workloads_are_there():
    names = " ".join(row.name for row in cpu_workloads())
    for name in ("rl_resets", "atari", "demucs", "pyannet", "hydrology", "awd_lstm", "predictor"):
        assert name in names
    for name in ("rnnt_layernorm", "vad", "fastrnns", "long"):
        assert name in names


def test_rows_that_leave_something_out_say_so():
    notes = {row.name: row.note for row in cpu_workloads()}
    for name in ("rl_resets", "awd_lstm", "rnnt_layernorm", "long"):
        assert notes[name]


def test_vad_runs_on_one_thread():
    (row,) = [row for row in cpu_workloads() if row.name == "vad"]
    assert (row.threads, row.calls, row.batch, row.steps) == (1, 1000, 1, 1)


def test_flops_of_one_layer():
    row = Workload("row", DENSE, 2, 3, 5, (7,))
    assert row.flops(INFERENCE) == 2 * 3 * 2 * (4 * 7) * (5 + 7)
    assert row.flops(TRAINING) == 3 * row.flops(INFERENCE)


def test_flops_of_projection_directions_and_layers():
    row = Workload("row", PROJECTION, 1, 1, 5, (7,), layers=2, bidirectional=True, proj=3)
    first = 2 * (2 * 28 * (5 + 3) + 2 * 7 * 3)
    second = 2 * (2 * 28 * (6 + 3) + 2 * 7 * 3)
    assert row.flops(INFERENCE) == first + second


def test_flops_of_packed_input_count_live_rows():
    packed = Workload("row", PACKED, 8, 50, 4, (4,), packed=True)
    dense = Workload("row", DENSE, 8, 50, 4, (4,))
    assert packed.flops(INFERENCE) / dense.flops(INFERENCE) == sum(packed.lengths()) / 400
    assert len(set(packed.lengths())) > 1
    assert max(packed.lengths()) == 50


@pytest.mark.parametrize("row", quick_workloads(), ids=lambda row: row.name)
def test_models_and_input_are_as_the_row_says(row):
    models, x = make_models(row), make_input(row)
    for a, b in zip(models[BASELINE].parameters(), models[FUSED].parameters(), strict=True):
        assert a.dtype == row.dtype
        assert torch.equal(a, b)
    assert isinstance(x, PackedSequence) == row.packed
    assert rows_of(x).shape[-1] == row.input
    assert torch.equal(rows_of(x), rows_of(make_input(row)))


def test_training_pass_returns_every_gradient():
    models, x = make_models(TINY), make_input(TINY)
    grad = passes.make_grad(models[BASELINE], x, TINY)
    gradients = passes.train(models[BASELINE], x, grad, TINY)
    assert set(gradients) == {"x", *dict(models[BASELINE].named_parameters())}
    assert all(g.abs().max() > 0 for g in gradients.values())


def test_inference_records_no_gradient_and_forward_does():
    models, x = make_models(TINY), make_input(TINY)
    for mode, recorded in ((INFERENCE, False), ("forward", True)):
        outputs = passes.make_pass(models[BASELINE], x, torch.empty(0), TINY, mode)()
        assert outputs["y"].requires_grad is recorded


def test_error_ratio_sees_a_wrong_result():
    models, x = make_models(TINY), make_input(TINY)
    grad = passes.make_grad(models[BASELINE], x, TINY)
    models[FUSED] = make_models(TINY)[BASELINE]
    assert compare(models, x, grad, TINY, TRAINING).ratio < 1.5
    with torch.no_grad():
        next(models[FUSED].parameters()).mul_(1 + 1e-4)
    for mode in ALL_MODES:
        assert compare(models, x, grad, TINY, mode).ratio > 3


def test_float64_has_no_error_ratio():
    row = Workload("row", DOUBLE, 3, 4, 5, (6,), dtype=torch.float64)
    models, x = make_models(row), make_input(row)
    models[FUSED] = models[BASELINE]
    accuracy = compare(models, x, torch.empty(0), row, INFERENCE)
    assert accuracy.ratio is None
    assert accuracy.errors[FUSED] == 0


def test_providers_take_turns():
    order = []

    def slow(name):
        order.append(name)
        time.sleep(0.011)

    functions = {name: lambda name=name: slow(name) for name in "AB"}
    timings = runner.interleave(functions, calls=1, budget=0.1)
    rounds = len(timings["A"].seconds) // 2
    assert "".join(order).endswith("ABBA" * rounds)
    assert len(timings["A"].seconds) == len(timings["B"].seconds) >= 2
    assert 0.011 <= timings["A"].median < 0.1


def test_time_is_per_call():
    timings = runner.interleave({"A": lambda: time.sleep(0.02)}, calls=10, budget=0.05)
    assert 0.002 <= timings["A"].median < 0.01


def test_quartiles_hold_the_median():
    timing = Timing([5.0, 1.0, 2.0, 4.0, 3.0])
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)


def test_thread_count_is_put_back():
    before = torch.get_num_threads()
    with runner.thread_count(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def met(results, disturbances=(), peak=None):
    return {bar.what: bar.met for bar in bars.all_bars(results, list(disturbances), peak)}


def test_one_slow_row_fails_its_bar():
    fast = [result(4.0), result(4.0)]
    assert all(met(fast).values())
    slow = met([*fast, result(0.9)])
    assert slow["dense float32, inference: slowest row"] is False
    assert slow["dense float32, inference: geometric mean"] is True


def test_geometric_mean():
    assert math.isclose(bars.geometric_mean([1.0, 4.0]), 2.0)
    assert not met([result(1.2), result(1.2)])["dense float32, inference: geometric mean"]


def test_share_of_peak_decides_its_bar():
    row = result(2.0, name="square")
    rate = row.gflops(FUSED)
    what = "share of FMA peak, inference"
    assert met([row], peak=rate / 0.89)[what] is True
    assert met([row], peak=rate / 0.87)[what] is False


def test_accuracy_bars():
    fine = met([result(2.0, error_ratio=1.9), result(2.0, mode=TRAINING, error_ratio=2.9)])
    assert fine["error of outputs over nn.LSTM's"]
    assert fine["error of gradients over nn.LSTM's"]
    assert not met([result(2.0, error_ratio=2.1)])["error of outputs over nn.LSTM's"]


def test_busy_core_bar():
    alone = {name: Timing([1.0]) for name in (BASELINE, FUSED)}
    for slowdown, fine in ((2.9, True), (3.1, False)):
        disturbed = {BASELINE: Timing([1.0]), FUSED: Timing([slowdown])}
        each = Disturbance(TINY, TRAINING, alone, disturbed)
        assert met([], [each])["slowdown with one core busy"] is fine


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.5, "1.5 s"), (0.0123, "12.3 ms"), (45.6e-6, "45.6 us"), (3e-9, "3 ns")],
)
def test_seconds_have_a_fitting_unit(value, text):
    assert report.seconds(value) == text


def test_gpu_grid_is_complete_and_names_differ():
    rows = cuda_workloads()
    assert len({row.name for row in rows}) == len(rows)
    grid = {(row.hidden[0], row.batch, row.group) for row in rows if row.name.startswith("H=")}
    assert len(grid) == 8 * 5 * 4


def test_floor_of_a_step():
    small = Workload("row", BFLOAT16, 1, 10, 64, (64,), dtype=torch.bfloat16)
    assert floor.step_floor(small, INFERENCE) == pytest.approx(2 * 256 * 128 / 790e12)
    large = Workload("row", BFLOAT16, 1, 10, 1024, (1024,), dtype=torch.bfloat16)
    assert floor.step_floor(large, INFERENCE) == floor.EXCHANGE
    assert floor.step_floor(large, TRAINING) == 2 * floor.EXCHANGE
    assert floor.steps_of(Workload("row", DENSE, 2, 7, 5, (3, 3), layers=2)) == 28


def test_gpu_table_shows_the_floor():
    table = report.results_table([result(2.0)], "cuda")
    assert {"us/step", "floor", "share"} <= {column.header for column in table.columns}


@pytest.mark.slow
@pytest.mark.skipif(_ops.extension is None, reason="the extension is not built")
def test_quick_run_writes_json(tmp_path):
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "bench", "--quick", "--filter", "small", "--json", str(file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "geometric mean" in run.stdout
    written = json.loads(file.read_text())
    assert written["environment"]["torch"] == torch.__version__
    assert {r["workload"]["name"] for r in written["results"]} == {
        "small",
        "small, packed",
        "small, float16",
    }
    for each in written["results"]:
        assert each["ratio"] > 0
        assert each["share_of_peak"][FUSED] > 0
    assert written["one_core_busy"]
    assert written["bars"]


def test_busy_machine_is_said(monkeypatch, capsys):
    cores = os.cpu_count()
    monkeypatch.setattr(os, "getloadavg", lambda: (0.4 * cores, 9.0, 9.0))
    bench_main.warn_if_busy()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0 * cores, 0.0, 0.0))
    bench_main.warn_if_busy()
    assert "times will be off" in capsys.readouterr().err


def test_unknown_filter_is_said():
    command = [sys.executable, "-m", "bench", "--filter", "no such row"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr.startswith("python -m bench: ")
