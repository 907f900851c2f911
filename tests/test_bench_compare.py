"""What the benchmark says got slower since an older run."""

import io
import re
from dataclasses import replace

import pytest

pytest.importorskip("rich")

import bench_fakes as fakes
from rich.console import Console

from bench import compare
from bench.results import Run


def changed(ratio, ours=12.3456e-3, **environment):
    return Run(
        {**fakes.ENVIRONMENT, **environment},
        [fakes.result(ratio, ours=ours), fakes.result(3.0, "square")],
    )


def comparison(old, new, width=100):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    compare.show_comparison(console, old, new)
    return console.file.getvalue()


def test_compare_finds_what_got_slower():
    text = comparison(changed(2.0), changed(1.5, ours=16e-3))
    assert re.search(r"single, inference\s+ratio\s+2\.00 \(2\.00-2\.00\)\s+1\.50 .*-25%", text)
    assert "Of 2 rows in both runs 1 got slower and 0 faster" in text
    assert "square" not in text


def with_rounds(*rounds):
    """A run whose first row was so many times faster in each round."""
    run = changed(2.0)
    both = run.results[0].measurements
    both["fused_lstm"].seconds[:], both["nn.LSTM"].seconds[:] = [1.0] * 5, rounds
    return run


def test_a_change_is_that_of_the_medians():
    """Whatever the quartiles did: these fell by a half, and by four fifths."""
    old, new = with_rounds(1.8, 2.0, 4.0, 6.0, 6.2), with_rounds(0.9, 1.0, 1.0, 1.2, 1.4)
    (change, _) = compare.compare(old, new)
    assert change.gain == pytest.approx(0.25)
    assert "-75%" in comparison(old, new)


def test_compare_ignores_what_the_spread_explains():
    noisy, same = with_rounds(1.6, 1.8, 2.0, 2.2, 2.4), with_rounds(1.5, 1.7, 1.9, 2.1, 2.3)
    assert "0 got slower and 0 faster" in comparison(noisy, same)


def test_compare_is_not_fooled_by_a_slower_machine():
    assert "0 got slower and 0 faster" in comparison(changed(2.0), changed(2.0, ours=30e-3))


def test_compare_takes_times_where_the_baseline_is_another():
    text = comparison(changed(2.0), changed(1.0, torch="3.0"))
    assert "0 got slower and 0 faster" in text  # fused_lstm's time is the same
    assert "torch 2.99.0+cpu -> 3.0" in text
    slower = comparison(changed(2.0), changed(1.0, ours=20e-3, torch="3.0"))
    assert re.search(r"single, inference\s+time\s+12\.3 ms .*-38%", slower)


def test_compare_skips_rows_of_other_sizes():
    old = Run(fakes.ENVIRONMENT, [fakes.result(1.0, fakes.workload("single", batch=2))])
    assert "Of 0 rows in both runs" in comparison(old, changed(2.0))


@pytest.mark.parametrize("width", [80, 100, 130, 160])
def test_a_comparison_fits(width):
    old, new = fakes.full_run(), fakes.full_run()
    new.results = [
        replace(r, measurements=fakes.result(0.5, r.workload, r.mode).measurements)
        for r in new.results
    ]
    text = comparison(old, new, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
