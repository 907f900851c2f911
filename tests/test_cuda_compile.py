"""Every CUDA source compiles with nvcc alone, and no kernel spills registers.

Of Hopper all arithmetics are compiled. Of the others one with tensor cores and one without stand
for all: a source takes half a minute for each architecture.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
SOURCES = [*sorted((CSRC / "cuda").glob("*.cu")), ROOT / "bench" / "gpu" / "exchange.cu"]
MATHS = {
    "80": ("Bf16", "Fp32"),
    "90a": ("Bf16", "Fp16", "Tf32", "Fp32", "Fp64"),
    "100": ("Bf16", "Fp32"),
}

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


def sources(architecture: str) -> list[Path]:
    """All but those of arithmetics that are left out."""
    left_out = {f"launch_{math.lower()}" for math in MATHS["90a"]}
    left_out -= {f"launch_{math.lower()}" for math in MATHS[architecture]}
    return [path for path in SOURCES if path.stem not in left_out]


def compile_source(source: Path, architecture: str, target: Path) -> str:
    """What ptxas reports; fails the test where nvcc does.

    The host's part is the same for every architecture, and compiled for Hopper alone.
    """
    what = "-c" if architecture == "90a" else "-cubin"
    done = subprocess.run(
        [
            "nvcc", "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xptxas=-v",
            "-gencode", f"arch=compute_{architecture},code=sm_{architecture}",
            f"-I{CSRC}", what, str(source), "-o", str(target),
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


@dataclass(frozen=True)
class Compiled:
    """All kernels of one architecture."""

    architecture: str
    kernels: list[Kernel]
    folder: Path  # of object files, named as the sources


@pytest.fixture(scope="module", params=MATHS, ids=lambda a: f"sm_{a}")
def compiled(request, tmp_path_factory) -> Compiled:
    supported = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True)
    if f"sm_{request.param.rstrip('a')}" not in supported.stdout.split():
        pytest.skip(f"this nvcc does not know sm_{request.param}")
    folder = tmp_path_factory.mktemp("compiled")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = pool.map(
            lambda source: compile_source(source, request.param, folder / f"{source.stem}.o"),
            sources(request.param),
        )
        found = [kernel for report in reports for kernel in kernels(report)]
    return Compiled(request.param, found, folder)


def test_no_kernel_spills(compiled):
    spilling = [
        k for k in compiled.kernels if k.spilled and not may_spill(compiled.architecture, k.name)
    ]
    assert not spilling, "\n".join(map(str, spilling))


def test_all_plans_are_there(compiled):
    """Every arithmetic has the kernels of plan D, A, B and C, forward and backward."""
    found = compiled.kernels
    for math in MATHS[compiled.architecture]:
        names = " ".join(k.name for k in found if math in k.name)
        for kernel in ("gate_step", "block", "sliced"):
            assert f"{kernel}_forward" in names
            assert f"{kernel}_backward" in names
        assert "GridExchange" in names
        assert "ClusterExchange" in names


def instructions(program: str, object_file: Path) -> dict[str, list[str]]:
    """The machine instructions of each kernel, in their order."""
    environment = {**os.environ, "PATH": f"{Path(program).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [program, "-sass", str(object_file)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    pattern = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
    _, *functions = re.split(r"\n\s*Function : ", done.stdout)
    return {text.split("\n", 1)[0]: pattern.findall(text) for text in functions}


def find_cuobjdump() -> str | None:
    """On PATH, or in the package that requirements-dev.txt names."""
    if program := shutil.which("cuobjdump"):
        return program
    packaged = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin" / "cuobjdump"
    return str(packaged) if packaged.exists() else None


def count(kernel: Counter[str], prefix: str) -> int:
    return sum(n for name, n in kernel.items() if name.startswith(prefix))


def test_machine_code_of_a_step(compiled):
    """On the way of one step lie as few fences and barriers as were meant, and wide accesses."""
    program = find_cuobjdump()
    if program is None or compiled.architecture != "90a":
        pytest.skip("needs cuobjdump, and looks at sm_90a alone")
    found = instructions(program, compiled.folder / "launch_bf16.o")
    assert len(found) == len([k for k in compiled.kernels if "Bf16" in k.name])
    for name, in_order in found.items():
        kernel = Counter(in_order)
        assert count(kernel, "LDL") + count(kernel, "STL") == 0, f"{name} uses local memory"
        if "sliced" not in name:
            continue
        assert count(kernel, "HMMA") > 0
        forward = "sliced_forward" in name
        assert count(kernel, "STS.128" if forward else "STS.64") > 0, name
        assert count(kernel, "LDS.128" if forward else "LDS") > 0, name
        if "GridExchange" in name:
            # One barrier sets the block up; a step has one, and one fence.
            assert count(kernel, "BAR.SYNC") == 2, name
            assert count(kernel, "MEMBAR") == kernel["MEMBAR.ALL.GPU"] == 1, name
            assert kernel["LDG.E.128.STRONG.GPU"] > 0, name
        else:
            # The cluster's barriers before and after the loop wait for global memory, no step does.
            assert kernel["MEMBAR.ALL.GPU"] == 2, name
            assert kernel["MEMBAR.ALL.CTA"] == 1, name


def test_plan_a_moves_pairs(compiled):
    """Two neighbouring units of 16 bits in one access, where addresses allow."""
    program = find_cuobjdump()
    if program is None or compiled.architecture != "90a":
        pytest.skip("needs cuobjdump, and looks at sm_90a alone")
    for name, in_order in instructions(program, compiled.folder / "launch_bf16.o").items():
        kernel = Counter(in_order)
        if "block_forward" in name:
            assert kernel["LDG.E"] >= 8, name  # four gates of two rows
            assert kernel["STG.E"] >= (10 if "Lb1E" in name else 2), (
                name
            )  # y, and where saved gates
        if "block_backward" in name:
            assert kernel["LDG.E.64"] >= 4, name  # c and c before of two rows, in float


def test_loads_of_weights_are_under_way_together(compiled):
    """Backward transposes 16-bit weights in registers, and waits there for what it has loaded."""
    program = find_cuobjdump()
    if program is None or compiled.architecture != "90a":
        pytest.skip("needs cuobjdump, and looks at sm_90a alone")
    found = instructions(program, compiled.folder / "launch_bf16.o")
    transposing = {
        name: [each.split(".")[0] for each in in_order]
        for name, in_order in found.items()
        if "MOVM.16.MT88" in in_order
    }
    # Two clusters, three grids, three blocks.
    assert len(transposing) == 8
    for name, in_order in transposing.items():
        # A tile has 8 words, one or two loads each as their addresses allow.
        assert in_order[: in_order.index("MOVM")].count("LDG") >= 24, name


def test_sources_include_no_torch_header():
    paths = [*(CSRC / "cuda").glob("*.cu"), *(CSRC / "cuda").glob("*.cuh")]
    assert paths
    for path in paths:
        included = re.findall(r"#include\s*[<\"]([^>\"]+)", path.read_text())
        assert not [name for name in included if name.startswith(("torch/", "ATen/", "c10/"))], path
