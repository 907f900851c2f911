"""What a row's limit counts, byte by byte: a machine without caches reads all of it again."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("rich")

from bench import limits
from bench.machine import Machine
from bench.workloads import DENSE, INFERENCE, PROJECTION, TRAINING, Workload

NO_CACHES = Machine(1, 1e12, 0, 0, 0, l2_rate=3e9, shared_rate=2e9, memory_rate=1e9)
ROW = Workload("row", DENSE, 2, 3, 5, (7,))  # sequences, steps, input, hidden
W_IH, W_HH = 4 * 7 * 5, 4 * 7 * 7
X, Y, SAVED = 2 * 3 * 5, 2 * 3 * 7, 2 * 3 * (4 + 1) * 7  # the last: gates and c


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


def test_training_reads_all_of_it_again():
    """Backward needs the weights once more, x and y for their gradients, and what is saved."""
    expected = 2 * (2 * W_HH + W_IH) + 2 * (X + Y) + 2 * SAVED
    assert elements(ROW, TRAINING) == expected + X + Y  # gradients


def test_only_what_is_in_the_loss_has_a_gradient():
    row = replace(ROW, last_step=True)
    assert elements(ROW, TRAINING) - elements(row, TRAINING) == (3 - 1) * 2 * 7
    assert elements(row, INFERENCE) == elements(ROW, INFERENCE)
    deep, deep_last = replace(ROW, layers=2), replace(row, layers=2)
    assert elements(deep, TRAINING) - elements(deep_last, TRAINING) == (3 - 1) * 2 * 7


def test_the_input_of_members_has_no_gradient():
    row = replace(ROW, members=2)
    assert elements(ROW, TRAINING) - elements(row, TRAINING) == X


def test_directions_are_read_and_written_each():
    both = replace(ROW, bidirectional=True)
    assert elements(both, INFERENCE) == 2 * (2 * W_HH + W_IH) + X + 2 * Y
    expected = 4 * (2 * W_HH + W_IH) + 3 * (X + 2 * Y) + 4 * SAVED
    assert elements(both, TRAINING) == expected


def test_a_limit_is_by_what_the_longest_of_its_layers_waits_for():
    """A small layer waits for its bytes, a large one for its products."""
    facts = replace(NO_CACHES, flops=1e10)
    row = Workload("row", DENSE, 64, 50, 4, (2, 256))
    small, large = (limits.layer_limit(row, each, INFERENCE, facts) for each in row.layer_sizes())
    assert (small.by, large.by) == ("memory", "multiply-adds")
    found = limits.cpu_limit(row, INFERENCE, facts)
    assert found.by == "multiply-adds"
    assert found.seconds == small.seconds + large.seconds
    assert found.bytes == small.bytes + large.bytes
