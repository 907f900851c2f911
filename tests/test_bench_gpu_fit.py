"""How `python -m bench.gpu.fit` weighs what it fits to, and what it says of the fit."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from bench.gpu import fit


def point(what: str) -> fit.Point:
    return fit.Point("grid", "bfloat16", 512, 16, 128, what, measured=2.0)


# By e, by e twice, and not at all; the last cannot run, which an estimate of 0 says.
POINTS = [point("step_us"), point("backward_start_us"), point("backward_step_us"), point("step_us")]
ESTIMATES = [2.0 * math.e, 2.0 / math.e**2, 2.0, 0.0]


@pytest.fixture(autouse=True)
def _estimates(monkeypatch):
    monkeypatch.setattr(fit, "estimates", lambda *arguments: ESTIMATES[: len(arguments[-1])])


def test_a_start_counts_a_tenth_of_a_step():
    assert fit.loss(None, "", POINTS) == pytest.approx(1.0 + 0.1 * 4.0)


def test_the_root_mean_square_is_over_what_counts():
    assert fit.root_mean_square(None, "", POINTS) == pytest.approx(math.sqrt(1.4 / 2.1))
    assert fit.root_mean_square(None, "", []) == 0.0


def test_a_fit_says_how_far_off_it_was(monkeypatch, capsys):
    monkeypatch.setattr(fit, "choices", lambda *arguments: {})
    extension = SimpleNamespace(cuda_latencies=dict, cuda_set_latencies=lambda table: None)
    fit.show(extension, "", POINTS, {})
    assert "0.816 before, 0.816 now" in capsys.readouterr().out
