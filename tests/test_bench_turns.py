"""How the benchmark times: turns, rounds and what is made of them."""

import functools
import time
from dataclasses import replace

import pytest

pytest.importorskip("rich")

import bench_fakes
from bench_fakes import TINY, failing_after

from bench import runner
from bench.providers import BASELINE, FUSED, PROVIDERS
from bench.results import spread
from bench.runner import Row, Turn, take_turns
from bench.watch import UNWATCHED
from bench.workloads import INFERENCE

BOTH = [PROVIDERS[BASELINE], PROVIDERS[FUSED]]


@pytest.fixture(autouse=True)
def _one_call_a_round(monkeypatch):
    bench_fakes.one_call_a_round(monkeypatch)


def test_providers_take_turns_for_at_least_five_rounds():
    order = []
    turns = {name: Turn(lambda name=name: order.append(name)) for name in "ABC"}
    seconds = {name: [] for name in turns}
    take_turns(turns, 0, seconds, UNWATCHED)
    assert "".join(order) == "ABCCBAABCCBAABC"
    assert all(len(each) == 5 for each in seconds.values())


def test_a_row_has_as_many_rounds_as_are_asked_for():
    measured = Row(TINY, 1).measure(INFERENCE, BOTH, budget=0, least=7)
    assert all(len(each.seconds) >= 7 for each in measured.measurements.values())


def test_rounds_go_on_until_the_budget_is_spent():
    seconds = {"A": []}
    take_turns({"A": Turn(lambda: time.sleep(0.002))}, 0.05, seconds, UNWATCHED)
    assert 5 < len(seconds["A"]) <= 25


@pytest.mark.parametrize("calls", [0, 5])  # while it is prepared, and in the second round
def test_a_provider_that_fails_while_it_is_timed_loses_no_other(calls):
    linear = PROVIDERS["linear"]
    measured = Row(TINY, 1).measure(INFERENCE, [BOTH[0], failing_after(calls), linear], budget=0)
    failed = measured.measurements[FUSED]
    assert failed.failed == "ValueError: a later call"
    assert failed.seconds == []
    assert len(measured.measurements["linear"].seconds) == runner.LEAST_ROUNDS
    assert measured.faster() is None
    assert measured.faster(BASELINE, "linear")


def rates_of_brgemm(monkeypatch, rates):
    """Finds these GFLOP/s one after the other; an exception is raised."""
    left = iter(rates)

    def rate(workload, threads):
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(runner, "brgemm_of", rate)


def test_the_micro_kernel_takes_part_in_every_round(monkeypatch):
    monkeypatch.setattr(runner, "watch", lambda threads, device: UNWATCHED)
    rates_of_brgemm(monkeypatch, [100.0, 1.0, 2.0, 4.0, 5.0, 10.0])  # the first asks for it
    measured = Row(TINY, 1).measure(INFERENCE, BOTH, budget=0, brgemm=True)
    seconds = [TINY.flops(INFERENCE) / 1e9 / rate for rate in (1.0, 2.0, 4.0, 5.0, 10.0)]
    assert measured.brgemm_seconds == pytest.approx(seconds)
    assert measured.brgemm_gflops() == pytest.approx(4.0)
    assert set(measured.measurements) == {BASELINE, FUSED}
    ours = measured.measurements[FUSED].seconds
    shares = [least / taken for least, taken in zip(seconds, ours, strict=True)]
    assert measured.brgemm_share() == pytest.approx(spread(shares).median)


@pytest.mark.parametrize(
    ("rates", "asked"),
    [([], False), ([None], True), ([100.0, 1.0, ValueError("none here")], True)],
)
def test_rows_without_the_micro_kernel_have_no_share(monkeypatch, rates, asked):
    monkeypatch.setattr(runner, "watch", lambda threads, device: UNWATCHED)
    rates_of_brgemm(monkeypatch, rates)
    measured = Row(TINY, 1).measure(INFERENCE, BOTH, budget=0, brgemm=asked)
    assert measured.brgemm_share() is measured.brgemm_gflops() is None
    assert measured.faster()


def test_time_is_per_call_of_the_module(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runner, "timer", lambda: now[0])
    turn = Turn(lambda: now.append(now.pop() + 0.02), repeats=2, calls=10)
    assert turn.seconds() == pytest.approx(0.002)
    monkeypatch.setattr(runner, "SHORTEST_BLOCK", 0.01)
    assert runner.repeats_for(0.001) == 10
    assert runner.repeats_for(5.0) == 1


def slow_at_first(first, later):
    """Something to run; it notes each of its calls."""
    calls = []

    def run():
        time.sleep(later if calls else first)
        calls.append(None)

    return run, calls


def test_what_another_turn_left_cold_is_not_timed():
    run, calls = slow_at_first(0.1, 0.001)
    assert Turn(run, repeats=4, warm_up=True).seconds() < 0.02
    assert len(calls) == 5
    run, calls = slow_at_first(0.1, 0.001)
    assert Turn(run, repeats=4).seconds() > 0.025
    assert len(calls) == 4


def test_the_first_call_does_not_tell_how_often_one_is_timed(monkeypatch):
    monkeypatch.setattr(runner, "SHORTEST_BLOCK", 0.1)
    run, _ = slow_at_first(0.2, 0.001)
    slow = replace(
        PROVIDERS[FUSED],
        prepare=lambda *args: replace(PROVIDERS[FUSED].prepare(*args), run=run),
    )
    _, turns = Row(TINY, 1).prepare_all(INFERENCE, [slow])
    assert turns[FUSED].repeats >= 10
    assert turns[FUSED].warm_up
    monkeypatch.setattr(runner, "WARMED_UP", 0.0005)
    _, turns = Row(TINY, 1).prepare_all(INFERENCE, [slow])
    assert not turns[FUSED].warm_up


@pytest.mark.parametrize(("limit", "warm"), [(0.1, True), (0.004, False)])
def test_all_of_a_row_are_warmed_up_or_none(monkeypatch, limit, warm):
    """By the first of them: nn.LSTM, where it takes part."""
    monkeypatch.setattr(runner, "WARMED_UP", limit)
    taken = {BASELINE: 0.01, FUSED: 0.002, "linear": 0.3}

    def sleeping(provider):
        def prepare(*args):
            run = functools.partial(time.sleep, taken[provider.name])
            return replace(provider.prepare(*args), run=run)

        return replace(provider, prepare=prepare)

    providers = [sleeping(PROVIDERS[name]) for name in taken]
    monkeypatch.setitem(PROVIDERS, BASELINE, providers[0])
    _, turns = Row(TINY, 1).prepare_all(INFERENCE, providers)
    assert {name: turn.warm_up for name, turn in turns.items()} == dict.fromkeys(taken, warm)


def test_ratio_is_the_median_of_the_rounds_ratios():
    """A round in which the machine was slow slows both, and counts for neither."""
    result = bench_fakes.result(2.0)
    ours, theirs = (result.measurements[name].seconds for name in (FUSED, BASELINE))
    ours[:], theirs[:] = [1.0, 1.0, 1.0, 9.0, 9.0], [2.0, 2.1, 2.2, 18.0, 27.0]
    assert result.faster().median == 2.1
    assert result.faster().low == 2.0
    assert spread(theirs).median / spread(ours).median == 2.2
