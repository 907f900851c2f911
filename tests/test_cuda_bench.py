"""`python -m bench.gpu` from end to end, with the host emulator in place of the GPU."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import builds, cases, fit
from fused_lstm import _ops

needs_extension = pytest.mark.skipif(_ops.extension is None, reason="the extension is not built")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """What a quick run writes."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    from cuda_emulated import build_exchange, build_ops

    library = build_ops()
    build_exchange()
    target = tmp_path_factory.mktemp("gpu") / "gpu.json"
    command.main(["--quick", "--emulator", str(library), "--json", str(target)])
    return json.loads(target.read_text())


@pytest.mark.slow
def test_every_case_ran(report):
    assert len(report["cases"]) == len(list(cases.all_cases(quick=True)))
    failed = [case for case in report["cases"] if case["outcome"] not in ("ok", "absent")]
    assert not failed
    kinds = {case["kind"] for case in report["cases"] if case["outcome"] == "ok"}
    assert kinds >= {"correct", "graph", "streams", "exchange", "stamps", "sweep"}
    assert report["device"]["name"] == "host emulator"


@pytest.mark.slow
def test_correct_cases_say_what_ran(report):
    for case in report["cases"]:
        if case["kind"] == "correct":
            asked = case["options"]["algorithm"]
            assert {ran["algorithm"] for ran in case["result"]["ran"].values()} == {asked}
            assert case["result"]["errors"]["y"] < 0.05


@pytest.mark.slow
def test_sweep_and_stamps_have_times(report):
    (sweep,) = [case["result"] for case in report["cases"] if case["kind"] == "sweep"]
    assert [row["request"].split(",")[0] for row in sweep["rows"]][:4] == [
        "steps", "block", "cluster", "grid",
    ]  # fmt: skip
    timed = [row for row in sweep["rows"] if "error" not in row]
    assert len(timed) >= 4
    for row in timed:
        assert row["ran"]["forward"]["algorithm"] == row["request"].split(",")[0]
        assert {"step_us", "start_us"} == set(row["forward"]) == set(row["backward"])
    (stamps,) = [case["result"] for case in report["cases"] if case["kind"] == "stamps"]
    assert all(cycles > 0 for cycles in stamps["cycles"].values())


@pytest.mark.slow
@needs_extension
def test_fit_reads_the_report(report, tmp_path, capsys):
    source = tmp_path / "gpu.json"
    source.write_text(json.dumps(report))
    before = _ops.extension.cuda_latencies()
    assert fit.main([str(source)]) == 0
    assert _ops.extension.cuda_latencies() == before
    said = capsys.readouterr().out
    assert "l2_hop_us = " in said
    assert "The planner would choose differently in" in said


@needs_extension
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "No such file or directory"),
        ("GPU", "Expecting value"),
        ("[]", "it is not what python -m bench.gpu writes"),
        ("{}", "it is not what python -m bench.gpu writes"),
    ],
    ids=["missing", "no JSON", "a list", "another mapping"],
)
def test_fit_refuses_other_files(tmp_path, capsys, text, why):
    file = tmp_path / "gpu.json"
    if text is not None:
        file.write_text(text)
    assert fit.main([str(file)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"python -m bench.gpu.fit: cannot read {file}: ")
    assert why in said


@pytest.mark.parametrize("main", [command.main, fit.main], ids=["bench.gpu", "bench.gpu.fit"])
def test_help_is_plain_text(capsys, main):
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    assert error.value.code == 0
    assert "`" not in capsys.readouterr().out


@pytest.fixture
def worker():
    """Runs one case as the command does, on a device that does not exist."""
    workers = command.Workers("no such library")
    yield workers
    workers.close()


def test_a_case_that_fails_is_reported_and_the_next_runs(worker):
    for _ in range(2):
        answer = worker.run(cases.Case("correct", {"algorithm": "grid", "hidden": 9}))
        assert answer["outcome"] == "error"
        assert "no such library" in answer["result"]["message"]
        assert "error" in command.line(cases.Case("correct"), answer)


def test_a_case_that_hangs_is_killed(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from bench.gpu import worker

    monkeypatch.setitem(worker.KINDS, "hang", lambda device, options: sys.stdin.read() or {})
    monkeypatch.setattr(worker, "open_device", lambda emulator: __import__("time").sleep(60))
    answer = worker.attempt_apart({"kind": "hang", "options": {}, "limit": 0.3}, "")
    assert answer["outcome"] == "hung"
    assert answer["seconds"] < 10


def test_a_wrapped_case_is_reported(worker):
    case = cases.Case("run", {"hidden": 9}, wrapper=("no-such-profiler",))
    assert worker.run(case)["outcome"] == "absent"
    shown = worker.run(cases.Case("run", {"hidden": 9}, wrapper=("echo", "seen by the profiler")))
    assert shown["outcome"] == "ok"
    assert "seen by the profiler" in shown["result"]["message"]


def test_a_wrapped_case_that_hangs_ends_with_all_that_it_started(worker, tmp_path):
    """A process that a checker leaves behind would run on the device beside later cases."""
    shell = f"(sleep 3; touch {tmp_path}/alive) & wait; true"
    case = cases.Case("run", {"hidden": 9}, wrapper=("sh", "-c", shell), limit=0.3)
    answer = worker.run(case)
    assert answer["outcome"] == "hung"
    assert answer["seconds"] < 10
    time.sleep(3.2)
    assert not (tmp_path / "alive").exists()


def test_no_case_begins_after_the_minutes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["--emulator", "none", "--json", "new/gpu.json", "--minutes", "-1", "--filter", "graph"]
    assert command.main(given) == 0
    assert json.loads((tmp_path / "new" / "gpu.json").read_text())["cases"] == []
    assert f"{len(cases.ALGORITHMS)} left for another run" in capsys.readouterr().out
    assert command.parse_arguments(["--json", "here.json"]).json == tmp_path / "here.json"


@pytest.mark.parametrize("broken", ["plain", "exchange"])
def test_a_build_that_fails_is_told(monkeypatch, capsys, broken):
    """Without exchange.cu all other cases run; a compiler that is not there is a failure, too."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    found = {name: (["true"], {}) for name in ("plain", "trace", "exchange")}
    monkeypatch.setattr(builds, "commands", lambda arch: {**found, broken: (["no-compiler"], {})})
    assert command.build({}) == (broken == "exchange")
    said = capsys.readouterr().out
    assert "build trace: done" in said
    assert f"build {broken}: [Errno 2] No such file or directory: 'no-compiler'" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_command_says_so(capsys):
    assert command.main([]) == 1
    assert "no GPU here" in capsys.readouterr().err


def test_what_is_built():
    commands = builds.commands(builds.architecture((9, 0)))
    assert set(commands) == {"plain", "trace", "exchange"}
    assert commands["trace"][1]["FUSED_LSTM_CUDA_TRACE"] == "1"
    assert commands["plain"][1]["TORCH_CUDA_ARCH_LIST"] == "9.0a"
    assert "arch=compute_90a,code=sm_90a" in commands["exchange"][0]
    assert builds.architecture((8, 6)) == "8.6"


@needs_extension
def test_every_case_of_the_full_run_fits_an_h100():
    """What is asked for can run: otherwise the first minutes on a GPU would find only that."""
    for case in cases.all_cases(quick=False):
        if case.kind not in ("correct", "graph", "streams", "stamps", "run"):
            continue
        options = case.options
        facts = fit.plan(
            _ops.extension, "cuda:sm_90", options.get("dtype", "bfloat16"), options["hidden"],
            37 if options.get("packed") else options.get("batch", 3), options.get("steps", 20),
            options["algorithm"], directions=options.get("directions", 1),
        )  # fmt: skip
        assert "unmet" not in facts, f"{case}: {facts.get('unmet')}"
        assert "backward_unmet" not in facts, f"{case}: {facts.get('backward_unmet')}"


@needs_extension
def test_fit_finds_a_table_again():
    """Times that another table predicts are fitted: it and the estimates under it come back."""
    extension = _ops.extension
    before = extension.cuda_latencies()
    true = {**before, "l2_hop_us": 1.1, "cell_us": 0.15}
    requests = [("grid,unit_tiles=1,groups=1", 512), ("grid,unit_tiles=2,groups=1", 1024)]
    asked = [
        fit.Point(request, "bfloat16", hidden, batch, 128, "step_us", 1.0)
        for request, hidden in requests
        for batch in (16, 64)
    ]
    extension.cuda_set_latencies(true)
    try:
        times = fit.estimates(extension, "cuda:sm_90", asked)
    finally:
        extension.cuda_set_latencies(before)
    measured = [
        fit.Point(p.request, p.dtype, p.hidden, p.batch, p.steps, p.what, time)
        for p, time in zip(asked, times, strict=True)
    ]
    table = fit.fit(extension, "cuda:sm_90", measured)
    extension.cuda_set_latencies(table)
    try:
        for value, time in zip(
            fit.estimates(extension, "cuda:sm_90", measured), times, strict=True
        ):
            assert value == pytest.approx(time, rel=0.05)
    finally:
        extension.cuda_set_latencies(before)
