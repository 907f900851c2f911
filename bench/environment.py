"""Where a benchmark ran: what a reader needs to judge or repeat it."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

import fused_lstm
from bench.peak import fma_peak
from fused_lstm import _ops


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def git_commit() -> str:
    """The commit that is checked out, with "+" if files differ from it; "" outside a checkout."""
    root = Path(__file__).parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def environment(threads: int, device: str) -> dict:
    extension = _ops.extension
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "fused_lstm": fused_lstm.__version__,
        "commit": git_commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "device": device,
        "threads": threads,
        "isa": extension.cpu_isa() if extension else None,
        "fma_peak_gflops": fma_peak(threads),
        "build": extension.build_info() if extension else None,
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    return facts
