"""The least time that one step can take on an H200-class GPU, from what was reported of it."""

from __future__ import annotations

import torch

from .workloads import TRAINING, Workload

# Multiply-adds count as two operations; tensor cores, but for plain float32. Of float64 it is the
# rate in NVIDIA's data sheet of the H200, 67 TFLOP/s; without tensor cores that would be 34.
RATES = {
    torch.bfloat16: 790e12,
    torch.float16: 790e12,
    torch.float32: 60e12,
    torch.float64: 67e12,
}
TF32_RATE = 395e12
# Seconds for h to reach the other SMs through L2, as published for an atomic hop on an H100;
# `python -m bench.gpu` measures it. The planner's table (csrc/cuda/costs.h) has the same.
EXCHANGE = 0.65e-6
SHARED_MEMORY = 227 * 1024  # bytes of one SM: a W_hh that fits needs no exchange


def step_floor(workload: Workload, mode: str) -> float:
    """Seconds for one step of one layer: its products and its exchange, which follow each other.

    Training has twice the products on top, and a second exchange, of the gradient.
    """
    rate = TF32_RATE if workload.tf32 else RATES[workload.dtype]
    products = workload.flops(mode) / steps_of(workload) / rate
    largest = max(workload.hidden)
    weights = 4 * largest * (workload.proj or largest) * workload.dtype.itemsize
    exchanges = (2 if mode == TRAINING else 1) * (weights > SHARED_MEMORY)
    return products + exchanges * EXCHANGE


def steps_of(workload: Workload) -> int:
    """Steps that follow one another: of all layers. Both directions of a layer run at once."""
    return workload.steps * workload.layers * len(workload.hidden)
