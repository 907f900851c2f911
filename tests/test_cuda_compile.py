"""Every CUDA source compiles with nvcc alone, and no kernel spills registers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
ARCHITECTURES = ["80", "90a", "100"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed"),
]


@dataclass(frozen=True)
class Kernel:
    """What ptxas -v says of one."""

    name: str
    registers: int
    stack: int
    spilled: int  # bytes stored and loaded


def may_spill(architecture: str, name: str) -> bool:
    """Clusters begin with 9.0: before it, their kernels are compiled and never launched."""
    return architecture == "80" and "ClusterExchange" in name


def compile_source(source: Path, architecture: str, target: Path) -> str:
    """What ptxas reports; fails the test where nvcc does."""
    done = subprocess.run(
        [
            "nvcc", "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xptxas=-v",
            "-gencode", f"arch=compute_{architecture},code=sm_{architecture}",
            f"-I{CSRC}", "-c", str(source), "-o", str(target),
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def kernels(report: str) -> list[Kernel]:
    pattern = re.compile(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    found = [
        Kernel(name, int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in pattern.findall(report)
    ]
    assert len(found) == report.count("Compiling entry function"), "ptxas reports in other words"
    return found


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda a: f"sm_{a}")
def compiled(request, tmp_path_factory) -> tuple[str, list[Kernel]]:
    """One architecture and all its kernels."""
    supported = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True)
    if f"sm_{request.param.rstrip('a')}" not in supported.stdout.split():
        pytest.skip(f"this nvcc does not know sm_{request.param}")
    folder = tmp_path_factory.mktemp("compiled")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = pool.map(
            lambda source: compile_source(source, request.param, folder / f"{source.stem}.o"),
            SOURCES,
        )
        return request.param, [kernel for report in reports for kernel in kernels(report)]


def test_no_kernel_spills(compiled):
    architecture, found = compiled
    spilling = [k for k in found if k.spilled and not may_spill(architecture, k.name)]
    assert not spilling, "\n".join(map(str, spilling))


def test_all_plans_are_there(compiled):
    """Every arithmetic has the kernels of plan D, A, B and C, forward and backward."""
    _, found = compiled
    for math in ("Fp64", "Fp32", "Tf32", "Bf16", "Fp16"):
        names = " ".join(k.name for k in found if math in k.name)
        for kernel in ("gate_step", "block", "sliced"):
            assert f"{kernel}_forward" in names
            assert f"{kernel}_backward" in names
        assert "GridExchange" in names
        assert "ClusterExchange" in names


def test_sources_include_no_torch_header():
    paths = [*(CSRC / "cuda").glob("*.cu"), *(CSRC / "cuda").glob("*.cuh")]
    assert paths
    for path in paths:
        included = re.findall(r"#include\s*[<\"]([^>\"]+)", path.read_text())
        assert not [name for name in included if name.startswith(("torch/", "ATen/", "c10/"))], path
