"""Times the providers by turns in one process, and compares their results."""

from __future__ import annotations

import contextlib
import functools
import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch.utils.benchmark.utils.timer import timer

from . import accuracy
from .accuracy import Reference
from .limits import limit_of
from .machine import brgemm_of
from .memory import peak_memory
from .problem import Problem, Tensors, make_problem
from .providers import BASELINE, PROVIDERS, Prepared, Provider, thread_count
from .results import Measurement, Result
from .watch import MOST_AGAIN, Kept, Watch, watch
from .workload import Workload

SHORTEST_BLOCK = 0.01  # seconds: far above the clock's resolution and what one block costs
# Seconds of the first provider's call, up to which each provider makes one more before those that
# are timed: it finds caches and threads as the turn before left them, which cost nn.LSTM half a
# millisecond.
WARMED_UP = 0.1
BRGEMM = "brgemm"  # its turn, beside those of providers
LEAST_ROUNDS = 5  # fewer have no quartiles to speak of


class Timed(Protocol):
    """What takes part in each round."""

    def seconds(self) -> float: ...


@dataclass
class Turn:
    """A provider's part of each round: `repeats` times `run`, which makes `calls` calls, after one
    that is not timed if `warm_up`.
    """

    run: Callable[[], object]
    repeats: int = 1
    calls: int = 1
    warm_up: bool = False
    settings: Callable[[], AbstractContextManager] = contextlib.nullcontext

    def seconds(self) -> float:
        """Per call."""
        with self.settings():
            if self.warm_up:
                self.run()
            elapsed = timeit.Timer(self.run, timer=timer).timeit(self.repeats)
        return elapsed / self.repeats / self.calls


@dataclass
class BrgemmTurn:
    """Seconds of the row's products at the micro-kernel's rate of this moment."""

    workload: Workload
    mode: str
    threads: int

    def seconds(self) -> float:
        return self.workload.flops(self.mode) / (1e9 * brgemm_of(self.workload, self.threads))


def repeats_for(seconds: float) -> int:
    return max(1, round(SHORTEST_BLOCK / max(seconds, 1e-9)))


def take_turns(
    turns: Mapping[str, Timed],
    budget: float,
    seconds: dict[str, list[float]],
    cores: Watch,
    least: int = LEAST_ROUNDS,
) -> tuple[dict[str, str], Kept]:
    """Appends to each provider's `seconds`, one entry a round; returns why, for those that failed,
    whose times are dropped, and which rounds were kept.

    Every other round goes backwards, so that a drift of the clock meets all alike. Rounds are added
    until `budget` seconds are spent, and there are at least `least` with all cores there.
    """
    start, rates = timer(), []
    failed: dict[str, str] = {}

    def are_enough() -> bool:
        kept = cores.kept(rates, LEAST_ROUNDS)
        there = len(kept.rounds) - kept.disturbed
        given_up = len(rates) >= least + MOST_AGAIN
        return (there >= least or given_up) and timer() - start >= budget

    while len(failed) < len(turns) and not are_enough():
        lowest = cores.look()
        for name in list(turns) if len(rates) % 2 == 0 else list(reversed(turns)):
            if name in failed:
                continue
            try:
                seconds[name].append(turns[name].seconds())
            except Exception as error:  # whatever a compiler or an engine may raise
                failed[name] = first_line(error)
                seconds[name].clear()
            lowest = min(lowest, cores.look())
        rates.append(lowest)
    kept = cores.kept(rates, LEAST_ROUNDS)
    for name in set(turns) - set(failed):
        seconds[name][:] = [seconds[name][k] for k in kept.rounds]
    return failed, kept


@contextlib.contextmanager
def float32_precision(workload: Workload) -> Iterator[None]:
    """Whether products of float32 may be rounded to TF32; for cuDNN, as for the kernels here."""
    setting = torch.backends.cudnn.rnn
    before = setting.fp32_precision
    setting.fp32_precision = "tf32" if workload.tf32 else "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = before


class Row:
    """One row, ready to be measured in each of its modes."""

    def __init__(self, workload: Workload, threads: int, device: str = "cpu") -> None:
        self.workload, self.device = workload, device
        self.threads = workload.threads or threads
        self.problem: Problem = make_problem(workload, self.threads, device)
        self.reference = functools.cache(functools.partial(Reference, self.problem))

    def measure(
        self,
        mode: str,
        providers: list[Provider],
        budget: float,
        brgemm: bool = False,
        least: int = LEAST_ROUNDS,
    ) -> Result:
        """In at least so many rounds. With `brgemm` the micro-kernel takes part in each: see
        `Result.brgemm_seconds`.
        """
        with self.settings():
            measurements, turns = self.prepare_all(mode, providers)
            seconds = {name: measurements[name].seconds for name in turns} | {BRGEMM: []}
            timed: dict[str, Timed] = dict(turns)
            if brgemm and turns and brgemm_of(self.workload, self.threads):
                timed[BRGEMM] = BrgemmTurn(self.workload, mode, self.threads)
            cores = watch(self.threads, self.device)
            failed, kept = take_turns(timed, budget, seconds, cores, least)
            failed.pop(BRGEMM, None)
            for name, reason in failed.items():
                measurements[name] = replace(measurements[name], failed=reason)
        limit = limit_of(self.workload, mode, self.threads, self.device)
        return Result(
            self.workload, mode, self.threads, measurements, limit, seconds[BRGEMM],
            again=kept.again, disturbed=kept.disturbed,
        )  # fmt: skip

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        with thread_count(self.threads), float32_precision(self.workload):
            yield

    def prepare_all(
        self, mode: str, providers: list[Provider]
    ) -> tuple[dict[str, Measurement], dict[str, Turn]]:
        """What is known of each provider before timing, and what to time where it is right."""
        if any(provider.compiles for provider in providers):
            torch.compiler.reset()  # else rows share sizes, and how often they may be compiled
        baseline = PROVIDERS[BASELINE]
        theirs: dict[str, float] = {}  # nn.LSTM's errors, where it is right: see `judge`
        measurements, turns = {}, {}
        for provider in [baseline, *(p for p in providers if p is not baseline)]:
            try:
                prepared, ours = self.check(provider, mode)
                if provider is baseline:
                    wrong = accuracy.why_baseline_wrong(ours, self.workload)
                    theirs = {} if wrong else ours
                    if provider not in providers:
                        continue
                else:
                    wrong = accuracy.why_wrong(ours, theirs, self.workload.dtype, provider.eps)
                known, turn = self.judge(provider, mode, prepared, ours, theirs, wrong)
            except Exception as error:  # as in `take_turns`
                known, turn = Measurement(failed=first_line(error)), None
            measurements[provider.name] = known
            if turn:
                turns[provider.name] = turn
        first = next(iter(turns.values()), None)
        for turn in turns.values():  # all or none, whatever takes longer beside them
            turn.warm_up = first.warm_up
        order = [p.name for p in providers if p.name in measurements]
        return {name: measurements[name] for name in order}, turns

    def check(self, provider: Provider, mode: str) -> tuple[Prepared, dict[str, float]]:
        """The provider, and the error of each of its tensors."""
        with provider.settings():
            prepared = provider.prepare(self.problem, mode)
            actual = prepared.check()
        return prepared, accuracy.errors(actual, self.expected(provider, mode))

    def expected(self, provider: Provider, mode: str) -> Tensors:
        return self.reference(provider.reference).expected(mode)

    def judge(
        self,
        provider: Provider,
        mode: str,
        prepared: Prepared,
        ours: dict[str, float],
        theirs: dict[str, float],
        wrong: str,
    ) -> tuple[Measurement, Turn | None]:
        """Errors and memory, and what to time; None where the result is wrong.

        Errors are held against nn.LSTM's, unless that is wrong itself.
        """
        dtype = self.workload.dtype
        judged = dtype != torch.float64 or provider.name != BASELINE  # else it is the reference
        known = {
            "setup_seconds": prepared.setup_seconds,
            "error": accuracy.largest(ours) if judged else None,
            "error_ratio": accuracy.error_ratio(ours, theirs, dtype),
            "error_of_allowed": accuracy.share_of_allowed(
                ours, theirs, self.expected(provider, mode), dtype, mode
            ),
        }
        if wrong:
            return Measurement(**known, failed=f"wrong: {wrong}"), None
        with provider.settings():
            memory = peak_memory(provider, self.problem, mode, prepared.run)
        once = Turn(prepared.run, settings=provider.settings)
        shortest = min(once.seconds() for _ in range(3))
        turn = replace(
            once,
            repeats=repeats_for(shortest),
            calls=self.workload.calls,
            warm_up=shortest <= WARMED_UP,
        )
        return Measurement(first_call_memory=memory, **known), turn


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
