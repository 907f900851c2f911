"""Older processors on a newer one: both libraries capped to an instruction set, in a new process.

The variables are read when a library is loaded, so they have to be there before torch is imported.
"""

from __future__ import annotations

import os
import sys

# MKL's cap holds on Intel processors only; on others it picks its own way.
CAPS = {
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "FUSED_LSTM_ISA": "avx2",
    },
    "avx512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "FUSED_LSTM_ISA": "avx512",
    },
}


def cap_in_force() -> str:
    """The cap that this process runs under; "" for none."""
    for name, variables in CAPS.items():
        if all(os.environ.get(key) == value for key, value in variables.items()):
            return name
    return ""


def run_capped(isa: str, package: str, arguments: list[str]) -> None:
    """Starts the benchmark anew under the cap, in place of this process; no return."""
    command = [sys.executable, "-m", package, *arguments]
    os.execve(sys.executable, command, {**os.environ, **CAPS[isa]})
