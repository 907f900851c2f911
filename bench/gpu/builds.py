"""Builds the extension for the device at hand, plain and with instruments, and exchange.cu."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.gpu.devices import ROOT

FOLDER = ROOT / "build" / "gpu"
BUILDS = ("plain", "trace")


def library_folder(build: str) -> Path:
    return FOLDER / build / "lib"


def architecture(capability: tuple[int, int]) -> str:
    """As TORCH_CUDA_ARCH_LIST has it; of Hopper as setup.py builds it."""
    return "9.0a" if capability == (9, 0) else f"{capability[0]}.{capability[1]}"


def commands(arch: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name, command and environment of everything that is built."""
    every = {"FUSED_LSTM_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch}
    found = {}
    for build in BUILDS:
        target = FOLDER / build
        command = [sys.executable, "setup.py", "--quiet", "build"]
        command += ["--build-temp", str(target / "temp"), "--build-lib", str(library_folder(build))]
        found[build] = (command, {**every, "FUSED_LSTM_CUDA_TRACE": str(int(build == "trace"))})
    number = arch.replace(".", "")
    found["exchange"] = (
        ["nvcc", "-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}",
         "-gencode", f"arch=compute_{number},code=sm_{number}",
         str(ROOT / "bench" / "gpu" / "exchange.cu"), "-o", str(FOLDER / "exchange")],
        {},
    )  # fmt: skip
    return found


def build_all(capability: tuple[int, int]) -> dict[str, str]:
    """Builds side by side; per name "" or the end of what the compiler said."""
    FOLDER.mkdir(parents=True, exist_ok=True)

    def build(item: tuple[list[str], dict[str, str]]) -> str:
        command, environment = item
        try:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
            )
        except OSError as error:
            return str(error)
        return "" if done.returncode == 0 else (done.stdout + done.stderr)[-3000:]

    wanted = commands(architecture(capability))
    with ThreadPoolExecutor(len(wanted)) as pool:
        return dict(zip(wanted, pool.map(build, wanted.values()), strict=True))
