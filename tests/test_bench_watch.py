"""Rounds of the benchmark in which a core was missing."""

from __future__ import annotations

from types import SimpleNamespace

import bench_fakes as fakes
import pytest

from bench import machine, report, results, runner, watch
from bench.runner import Turn, take_turns
from bench.watch import MOST_AGAIN, UNWATCHED, Kept, Watch

BEST = 200.0


def watching(*rates):
    """Finds these rates one after the other, after the best one; then always the last."""
    left = [BEST, *rates]
    found = Watch(lambda: left.pop(0) if len(left) > 1 else left[0])
    found.look()
    return found


def run_by_turns(watched, budget=0.0, names="AB"):
    """The number of the call that each kept time is of, by provider, and which rounds those are."""
    calls = dict.fromkeys(names, 0)

    def turn(name):
        def seconds():
            calls[name] += 1
            return calls[name]

        return SimpleNamespace(seconds=seconds)

    seconds = {name: [] for name in names}
    failed, kept = take_turns({name: turn(name) for name in names}, budget, seconds, watched)
    assert not failed
    return seconds, kept


def test_a_round_in_which_a_core_was_missing_is_measured_again():
    """Looks are before each round and after each turn: the second of round 2, of two providers."""
    there = [BEST] * 3
    seconds, kept = run_by_turns(watching(*there, BEST, 100.0, BEST, BEST))
    assert seconds == {"A": [1, 3, 4, 5, 6], "B": [1, 3, 4, 5, 6]}
    assert kept == Kept([0, 2, 3, 4, 5], again=1)


@pytest.mark.parametrize("look", range(3))
def test_every_look_counts(look):
    rates = [BEST] * 3
    rates[look] = 0.79 * BEST
    seconds, kept = run_by_turns(watching(*rates, 0.81 * BEST))
    assert seconds["A"] == seconds["B"] == [2, 3, 4, 5, 6]
    assert kept.again == 1


def test_what_is_best_may_be_seen_late():
    """Two rounds on half the machine, all that was seen of it until then."""
    half = Watch(lambda: rates.pop(0) if len(rates) > 1 else rates[0])
    rates = [0.5 * BEST] * 6 + [BEST]
    seconds, kept = run_by_turns(half)
    assert seconds["A"] == [3, 4, 5, 6, 7]
    assert kept == Kept([2, 3, 4, 5, 6], again=2)


def test_a_core_that_does_not_come_back_is_said():
    seconds, kept = run_by_turns(watching(100.0))
    assert len(seconds["A"]) == runner.LEAST_ROUNDS + MOST_AGAIN
    assert kept == Kept(list(range(15)), disturbed=15)
    seconds, kept = run_by_turns(watching(*[BEST] * 9, 100.0))  # all are better than these three
    assert len(seconds["A"]) == 15
    assert kept.disturbed == 12


def test_more_rounds_may_be_asked_for():
    """Of these at least five count alone, however many of the others were there."""
    seconds = {"A": []}
    rates = [100.0] * 4 + [BEST]
    _, kept = take_turns({"A": Turn(lambda: None)}, 0, seconds, watching(*rates), 8)
    assert kept == Kept(list(range(2, 10)), again=2)
    assert len(seconds["A"]) == 8
    rates = [BEST] * 12 + [100.0]
    _, kept = take_turns({"A": Turn(lambda: None)}, 0, seconds, watching(*rates), 8)
    assert kept == Kept(list(range(6)), again=8 + MOST_AGAIN - 6)


def test_rounds_within_the_budget_are_dropped_too():
    """However many there are: those that are left are enough."""
    rates = [BEST, BEST, 100.0] * 10_000
    slow = Turn(lambda: watch.time.sleep(1e-3))
    watched = watching(*rates)
    seconds = {"A": []}
    _, kept = take_turns({"A": slow}, 0.1, seconds, watched)
    assert kept.again > MOST_AGAIN
    assert len(seconds["A"]) == len(kept.rounds) >= runner.LEAST_ROUNDS


def test_times_of_a_provider_that_failed_are_not_missed():
    def fail():
        raise ValueError("no")

    turns = {"A": Turn(lambda: None), "B": Turn(fail)}
    seconds = {"A": [], "B": []}
    failed, kept = take_turns(turns, 0, seconds, watching(100.0, BEST))
    assert failed == {"B": "ValueError: no"}
    assert (len(seconds["A"]), seconds["B"]) == (5, [])
    assert kept.again == 1


def test_rates_of_the_machine_are_measured_while_it_is_all_there(monkeypatch):
    monkeypatch.setattr(watch, "PAUSE", 0)
    found = iter("abc")
    assert watching(100.0, BEST, BEST, 100.0, BEST, BEST).measured(lambda: next(found)) == "c"
    always = watching(100.0)
    tries = []
    always.measured(lambda: tries.append(1))
    assert len(tries) == MOST_AGAIN


def test_the_machine_is_measured_so(monkeypatch):
    watched = []

    class Recording(Watch):
        def measured(self, measure):
            watched.append(super().measured(measure))
            return watched[-1]

    monkeypatch.setattr(machine, "watch", lambda threads: Recording(lambda: BEST))
    monkeypatch.setattr(machine._ops, "extension", fakes.Extension())
    facts = machine.machine.__wrapped__("float32", 2)
    assert watched == [facts]


def test_cores_are_looked_at_where_they_can_be(monkeypatch):
    fresh = watch.watch.__wrapped__
    monkeypatch.setattr(watch, "PAUSE", 0)
    monkeypatch.setattr(watch._ops, "extension", fakes.Extension())
    found = fresh(2)
    assert found.best == found.look() == 390.0
    assert fresh(2, "cuda") is UNWATCHED
    monkeypatch.setattr(watch._ops, "extension", None)
    assert fresh(2) is UNWATCHED


def test_the_extension_measures_its_cores(extension):
    """In the unit of the peak, which is the best of what may be disturbed: by turns, so that both
    meet the same moments, and for a while."""
    rate = peak = 0.0
    end = watch.time.monotonic() + 20
    while not 0.8 < rate / max(peak, 1e-9) < 1.25 and watch.time.monotonic() < end:
        peak = max(peak, extension.fma_peak(1))
        rate = max([rate, *(extension.fma_rate(1, 1e-3) for _ in range(10))])
    assert 0.8 < rate / peak < 1.25


def test_a_report_says_what_was_missing():
    rows = [fakes.result(2.0, again=3), fakes.result(2.0, "square", disturbed=4)]
    lines = report.notes(rows)
    assert "square, inference: a core was missing in 4 of 5 rounds." in lines
    assert any(line.startswith("3 of 13 rounds were measured again") for line in lines)
    assert not any("missing" in line for line in report.notes([fakes.result(2.0)]))
    kept = results.from_json(results.to_json(results.Run(fakes.ENVIRONMENT, rows))).results
    assert [(each.again, each.disturbed) for each in kept] == [(3, 0), (0, 4)]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_rate_is_found_however_late_a_team_begins(threads, extension):
    """On a busy machine the time is over before it does."""
    assert extension.fma_rate(threads, 0.0) > 0
