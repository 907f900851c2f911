"""What this machine can do, as the extension measures it; None where it cannot."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from fused_lstm import _ops

from .watch import watch
from .workload import Workload

PANEL = 64  # columns of a panel that oneDNN's micro-kernel multiplies with
TRIALS = 2  # the first finds the panels in no cache
BEYOND_CACHES = 4  # times the shared cache: hardly any of so much is found in it again
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")  # Linux says there how large they are
# Of one core in any processor: assumed where the system does not tell, as a limit may count too
# little, but not too much.
LARGEST_L1 = 128 * 1024
MATRIX_DTYPES = ("bfloat16", "float16")  # that may have units of their own


@dataclass(frozen=True)
class Machine:
    """Rates of all threads together, for one dtype."""

    threads: int
    flops: float  # per second, at the multiply-add peak
    l1_bytes: int  # of one core, for data
    l2_bytes: int  # of one core
    shared_bytes: int  # of the cache that all cores share
    l2_rate: float  # bytes per second
    shared_rate: float
    memory_rate: float


@functools.cache
def machine(dtype: str, threads: int) -> Machine | None:
    """What limits this dtype on this many threads."""
    if _ops.extension is None:
        return None
    return watch(threads).measured(lambda: measured(dtype, threads))


def measured(dtype: str, threads: int) -> Machine:
    facts = _ops.extension.cpu_machine(dtype, threads)
    per_second = 1e9 * threads  # from a unit per ns and core
    peak = max(1e9 * _ops.extension.fma_peak(threads, dtype), matrix_peak(dtype, threads))
    return Machine(
        threads,
        peak,
        l1_bytes(),
        facts["l2_bytes"],
        facts["shared_bytes"],
        per_second * facts["l2_rate"],
        per_second * facts["shared_rate" if threads == 1 else "shared_rate_all"],
        1e9 * _ops.extension.read_rate(BEYOND_CACHES * int(facts["shared_bytes"]), threads),
    )


def l1_bytes() -> int:
    """Of one core's L1, for data."""
    for cache in CACHES.glob("index*"):
        try:
            level, kind, size = (
                (cache / name).read_text().strip() for name in ("level", "type", "size")
            )
            if level == "1" and kind == "Data":
                return 1024 * int(size.removesuffix("K"))
        except (OSError, ValueError):
            continue
    return LARGEST_L1


def matrix_peak(dtype: str, threads: int) -> float:
    """Operations per second of the matrix units, on one panel that stays in L1 or L2."""
    if dtype not in MATRIX_DTYPES:
        return 0.0
    return 1e9 * (_ops.extension.brgemm_rate(64, PANEL, 512, 1, dtype, threads) or 0)


def brgemm_gflops(batch: int, hidden: int, dtype: str, threads: int) -> float | None:
    """Rate, now, of oneDNN's micro-kernel on W_hh [4H, H] in panels, the faster of both ways to
    split: the threads share the rows, and each reads every panel; or they share the panels.
    """
    rate = getattr(_ops.extension, "brgemm_rate", None)
    if rate is None:
        return None
    panels = max(1, 4 * hidden // PANEL)
    splits = {(max(1, batch // threads), panels), (batch, max(1, panels // threads))}

    asked = {"dtype": dtype, "threads": threads, "trials": TRIALS}
    return max(rate(rows, PANEL, hidden, count, **asked) for rows, count in splits) or None


def brgemm_of(workload: Workload, threads: int) -> float | None:
    return brgemm_gflops(workload.batch, workload.hidden[0], workload.dtype_name, threads)
