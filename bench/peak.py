"""What this machine can do: the rate of fused multiply-adds in float32, measured."""

from __future__ import annotations

import functools

from fused_lstm import _ops


@functools.cache
def fma_peak(threads: int) -> float | None:
    """GFLOP/s of a loop of float32 multiply-adds on this many threads; None if not measurable."""
    measure = getattr(_ops.extension, "fma_peak", None)
    return measure(threads) if measure else None
