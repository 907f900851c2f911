"""Whether all cores were there while something was timed.

A core of a virtual machine is a thread of its host. For a while it may share a real core with
another one, or wait for any: then two threads are as slow as one, whatever they compute. So the
rate of multiply-adds, which needs the cores and nothing else, is looked at before and after every
turn, and a round in which it fell is measured again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from fused_lstm import _ops

T = TypeVar("T")

LOOK = 1e-3  # seconds of one look: hundreds of forks, and short beside a turn
# Of the best rate seen. Clocks and interrupts take up to a tenth of it, a core that is shared half
# of what that core does: of two, a quarter of all. Of many cores one is within the noise.
ALL_THERE = 0.8
FIRST_LOOKS, PAUSE = 20, 0.02  # for the best rate before anything is timed; seconds
MOST_AGAIN = 10  # rounds of a row, where the cores do not come back


class Kept(NamedTuple):
    """Which rounds count."""

    rounds: list[int]
    again: int = 0  # that do not: in these a core was missing, and others were measured instead
    disturbed: int = 0  # that do although a core was missing


class Watch:
    """Looks at the cores of a team; `rate` measures what they do."""

    def __init__(self, rate: Callable[[], float]) -> None:
        self.rate, self.best = rate, 0.0

    def look(self) -> float:
        """The rate now."""
        found = self.rate()
        self.best = max(self.best, found)
        return found

    def all_there(self, rate: float) -> bool:
        return rate >= ALL_THERE * self.best

    def kept(self, rates: Sequence[float], least: int) -> Kept:
        """Of rounds in which this was the lowest rate: those with all cores there, all if these are
        fewer than `least`.
        """
        there = [k for k, rate in enumerate(rates) if self.all_there(rate)]
        if len(there) >= least:
            return Kept(there, again=len(rates) - len(there))
        return Kept(list(range(len(rates))), disturbed=len(rates) - len(there))

    def measured(self, measure: Callable[[], T]) -> T:
        """What `measure` finds while all cores are there, or in the last of a few tries."""
        for _ in range(MOST_AGAIN):
            before = self.look()
            found = measure()
            if self.all_there(min(before, self.look())):
                break
            time.sleep(PAUSE)
        return found


UNWATCHED = Watch(lambda: 1.0)  # to it, all cores are there


@functools.cache
def watch(threads: int, device: str = "cpu") -> Watch:
    """Of this machine's cores, where that can be told."""
    look = getattr(_ops.extension, "fma_rate", None)
    if look is None or device != "cpu":
        return UNWATCHED
    found = Watch(lambda: look(threads, LOOK))
    for _ in range(FIRST_LOOKS):
        found.look()
        time.sleep(PAUSE)
    return found
