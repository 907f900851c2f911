"""Where a benchmark ran: what a reader needs to judge or repeat it."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import subprocess
import time
from pathlib import Path

import torch

import fused_lstm
from fused_lstm import _ops

from .isa import cap_in_force
from .machine import machine
from .providers import PRECISIONS, cpu_precision

WATCHED_SECONDS = 0.5
BUSY_CORES = 0.25  # that other processes may use before times are off


def cpu_facts() -> dict[str, str]:
    """Lines of /proc/cpuinfo, of any core; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def cpu_name() -> str:
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_kind() -> str:
    """Vendor, family and model: some machines do not tell their processor's full name."""
    facts = cpu_facts()
    names = ("vendor_id", "cpu family", "model")
    return " ".join(facts[name] for name in names if name in facts)


def has_amx() -> bool:
    """Whether the processor has Intel's matrix units, as torch finds."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def git_commit() -> str:
    """The commit that is checked out, with "+" if files differ from it; "" outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def busy_cores() -> float | None:
    """How many cores others use while this process waits; None where the system does not tell.

    The load average would also count what ran a minute ago, such as the build.
    """

    def busy_and_all() -> tuple[int, int]:
        ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # without idle, and waiting for a disk

    try:
        busy, total = busy_and_all()
        time.sleep(WATCHED_SECONDS)
        busy_later, total_later = busy_and_all()
    except (OSError, ValueError, IndexError):
        return None
    return (os.cpu_count() or 1) * (busy_later - busy) / max(1, total_later - total)


def arithmetic() -> dict[str, str]:
    """What float32 of a large batch is computed in under each of PyTorch's settings."""
    if _ops.extension is None:
        return {}
    found = {}
    for setting in PRECISIONS:
        with cpu_precision(setting):
            plan = _ops.extension.plan(steps=1, batch=64, input_size=64, hidden_size=64, threads=1)
        found[setting] = plan["computed_in"]
    return found


def environment(threads: int, device: str, command: list[str]) -> dict:
    extension = _ops.extension
    facts = machine("float32", threads) if device == "cpu" else None
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(command),
        "fused_lstm": fused_lstm.__version__,
        "commit": git_commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cpu_kind": cpu_kind(),
        "cores": os.cpu_count(),
        "device": device,
        "threads": threads,
        "isa": extension.cpu_isa() if extension else None,
        "isa_cap": cap_in_force(),
        "amx": has_amx() and not cap_in_force(),
        "fp32_precision": arithmetic() if device == "cpu" else {},
        "machine": dataclasses.asdict(facts) if facts else None,
        "build": extension.build_info() if extension else None,
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found
