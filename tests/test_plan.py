"""The CPU planner: every case gets a plan that its machine can run."""

from __future__ import annotations

import itertools

import pytest

from fused_lstm import _ops

pytestmark = pytest.mark.skipif(_ops.extension is None, reason="the extension is not built")


def plan(steps: int, batch: int, input_size: int, hidden_size: int, **options):
    return _ops.extension.plan(
        steps=steps, batch=batch, input_size=input_size, hidden_size=hidden_size, **options
    )


def test_every_case_has_a_plan():
    sizes = [(1, 1), (1, 300), (7, 2), (500, 1), (65536, 2), (50, 64)]
    for (steps, batch), hidden, threads, directions, dtype in itertools.product(
        sizes,
        [1, 3, 17, 64, 1000],
        [1, 2, 3, 16, 61],
        [1, 2],
        ["float32", "float64", "bfloat16", "float16"],
    ):
        found = plan(
            steps, batch, 20, hidden,
            threads=threads, directions=directions, dtype=dtype, training=True,
        )  # fmt: skip
        assert 1 <= found["threads"] <= threads
        assert 1 <= found["backward_threads"] <= threads
        assert found["algorithm"] in ("dot", "panels")
        assert found["why"]
        assert found["backward_why"]


def test_one_step_of_one_row_reads_the_weights_as_they_lie():
    found = plan(1, 1, 128, 128, threads=2)
    assert found["algorithm"] == "dot"
    assert found["threads"] == 1


def test_a_projection_is_always_packed():
    assert plan(1, 1, 128, 128, proj_size=64)["algorithm"] == "panels"


def test_a_large_batch_is_split_by_rows():
    found = plan(50, 64, 512, 512, threads=2)
    assert found["threads"] == 2
    assert "no barrier" in found["why"]


def test_a_single_row_is_split_by_units():
    found = plan(200, 1, 512, 512, threads=2)
    assert found["threads"] == 2
    assert "one barrier per step" in found["why"]


def test_both_directions_run_at_once():
    assert "both directions" in plan(100, 32, 128, 256, threads=2, directions=2)["why"]


def test_few_live_rows_make_less_work():
    """Sequences that end early leave too little for a second thread."""
    assert plan(20, 16, 16, 32, threads=2)["threads"] == 2
    sizes = [16] + [1] * 19
    assert plan(0, 0, 16, 32, threads=2, batch_sizes=sizes)["threads"] == 1


@pytest.mark.parametrize("bad", [{"dtype": "int8"}, {"device": "tpu"}])
def test_unknown_names_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected|tpu"):
        plan(1, 1, 3, 3, **bad)
