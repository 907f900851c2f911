"""What the benchmark says of the machine that it ran on, and the caps that it runs under."""

import os
from types import SimpleNamespace

import pytest

pytest.importorskip("rich")

import bench_fakes

from bench import environment, isa


def test_isa_caps_both_libraries_in_a_process_of_its_own(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    isa.run_capped("avx2", "fused_lstm.bench", ["--isa", "avx2", "--quick"])
    ((program, command, variables),) = calls
    assert command == [program, "-m", "fused_lstm.bench", "--isa", "avx2", "--quick"]
    assert variables["FUSED_LSTM_ISA"] == "avx2"
    assert variables["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert variables["ATEN_CPU_CAPABILITY"] == "avx2"
    assert variables["MKL_ENABLE_INSTRUCTIONS"] == "AVX2"
    assert isa.cap_in_force() == ""
    for name, value in isa.CAPS["avx2"].items():
        monkeypatch.setenv(name, value)
    assert isa.cap_in_force() == "avx2"


def test_environment_names_the_machine():
    facts = environment.environment(2, "cpu", ["python", "-m", "bench"])
    assert facts["cpu"]
    assert facts["command"] == "python -m bench"
    assert facts["threads"] == 2
    assert set(bench_fakes.ENVIRONMENT) == set(facts)


@pytest.fixture
def cpu_facts(monkeypatch):
    facts = {"vendor_id": "GenuineIntel", "cpu family": "6", "model": "143", "flags": "fpu"}
    monkeypatch.setattr(environment, "cpu_facts", lambda: facts)
    return facts


def test_a_kind_of_processor_is_its_vendor_family_and_model(cpu_facts):
    assert environment.cpu_kind() == "GenuineIntel 6 143"
    assert environment.cpu_name()  # some do not tell theirs
    cpu_facts["model name"] = "Some Processor 9000"
    assert environment.cpu_name() == "Some Processor 9000"
    cpu_facts.clear()
    assert environment.cpu_kind() == ""


@pytest.mark.parametrize("amx", [False, True])
def test_no_amx_under_a_cap(monkeypatch, amx):
    monkeypatch.setattr(environment, "has_amx", lambda: amx)
    assert environment.environment(2, "cpu", [])["amx"] is amx
    monkeypatch.setattr(environment, "cap_in_force", lambda: "avx512")
    assert environment.environment(2, "cpu", [])["amx"] is False


def test_a_core_that_waits_for_a_disk_is_not_busy(monkeypatch):
    """Of all cores' 195 ticks 45 were used, 50 spent waiting for a disk, and 100 on nothing."""
    stat = iter(
        [
            "cpu  100 10 20 1000 500 5 5 5 0 0\ncpu0 1 1\n",
            "cpu  120 15 30 1100 550 10 10 5 0 0\ncpu0 9 9\n",
        ]
    )
    monkeypatch.setattr(environment, "WATCHED_SECONDS", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    text = lambda path: SimpleNamespace(read_text=lambda: next(stat))  # noqa: E731
    monkeypatch.setattr(environment, "Path", text)
    assert environment.busy_cores() == pytest.approx(4 * 45 / 195)
