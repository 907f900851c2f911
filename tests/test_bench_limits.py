"""What a row's limit counts, byte by byte: a machine without caches reads all of it again."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("rich")

from bench import limits
from bench.machine import Machine
from bench.workloads import DENSE, INFERENCE, PROJECTION, Workload

NO_CACHES = Machine(1, 1e12, 0, 0, 0, 1e9, 1e9, 1e9)
ROW = Workload("row", DENSE, 2, 3, 5, (7,))  # sequences, steps, input, hidden
W_IH, W_HH = 4 * 7 * 5, 4 * 7 * 7
X, Y = 2 * 3 * 5, 2 * 3 * 7


def elements(workload: Workload, mode: str) -> float:
    """Of float32, beyond the cores."""
    return limits.cpu_limit(workload, mode, NO_CACHES).bytes / 4


def test_inference_reads_and_writes_every_element_that_it_needs():
    assert elements(ROW, INFERENCE) == 2 * W_HH + W_IH + X + Y


def test_a_first_step_from_zero_reads_no_recurrent_weights():
    assert elements(replace(ROW, steps=1), INFERENCE) == W_IH + 2 * (5 + 7)
    stepping = replace(ROW, steps=1, calls=10)
    assert elements(stepping, INFERENCE) == pytest.approx(0.9 * W_HH + W_IH + 2 * (5 + 7))


def test_a_projection_is_read_in_every_step():
    row = replace(ROW, group=PROJECTION, proj=6)
    w_hh, w_hr = 4 * 7 * 6, 6 * 7
    assert elements(row, INFERENCE) == 2 * w_hh + 3 * w_hr + W_IH + X + 2 * 3 * 6
    assert row.flops(INFERENCE) == 2 * (2 * 3 * (W_IH + w_hr) + 2 * 2 * w_hh)
