"""What the tests share: a fixed seed, the devices, and both ways to compute."""

from __future__ import annotations

import os
from collections.abc import Iterator

# The size of a team is a matter of the test, and not of what else runs on this machine. Before the
# extension is there; also for the processes that tests start.
os.environ.setdefault("FUSED_LSTM_ADAPT_THREADS", "0")
# Threads that OpenMP keeps for the next team sleep until then. Spinning they keep the cores from
# tests that run at the same time, which took up to nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from fused_lstm import _ops

NO_EXTENSION = "the extension is not built" if _ops.extension is None else ""


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(1234)


@pytest.fixture(autouse=True)
def _thread_count():
    """A test may set the number of threads; the next one starts with what this one found."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def pytest_report_header() -> list[str]:
    without = "" if "cuda" in DEVICES else " (no CUDA device: the CUDA half is not collected)"
    extension = NO_EXTENSION or f"built, {_ops.extension.cpu_isa()}"
    return [f"devices: {', '.join(DEVICES)}{without}", f"extension: {extension}"]


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """The device to run on: the same tests on the CPU and, where there is one, on a GPU."""
    return request.param


@pytest.fixture(params=["op", "fallback"])
def backend(request, monkeypatch) -> str:
    """Run the test with the fused op, and again on the plain PyTorch fallback."""
    if request.param == "op":
        if NO_EXTENSION:
            pytest.skip(NO_EXTENSION)
    else:
        use_fallback(monkeypatch)
    return request.param


@pytest.fixture
def extension():
    """The compiled module."""
    if NO_EXTENSION:
        pytest.skip(NO_EXTENSION)
    return _ops.extension


ISAS = ["baseline", "avx2", "avx512", "avx512_bf16", "avx512_amx"]


@pytest.fixture(params=ISAS)
def isa(request, extension) -> Iterator[str]:
    """The CPU kernels of each instruction set that the build holds and this machine has."""
    before = extension.cpu_isa()
    if request.param not in extension.build_info()["compiled_isas"]:
        pytest.skip(f"{request.param} is not compiled in")
    extension.set_cpu_isa(request.param)
    if extension.cpu_isa() != request.param:
        pytest.skip(f"this machine has {before} at most")
    yield request.param
    extension.set_cpu_isa(before)


@pytest.fixture
def fallback(monkeypatch) -> None:
    """Everything runs on the plain PyTorch fallback."""
    use_fallback(monkeypatch)


def use_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ops, "unavailable", lambda device_type, dtype: "the test says so")
    monkeypatch.setattr(_ops, "warn_fallback", lambda reason: None)
