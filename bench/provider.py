"""What a provider is: a function that runs a problem in a mode, and what is known of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import nn

from .passes import make_pass, make_timed
from .problem import Chain, Problem, Tensors, load
from .workload import TRAINING, Workload


@dataclass(frozen=True)
class Prepared:
    """One provider, ready to run one problem in one mode."""

    run: Callable[[], object]  # what is timed
    check: Callable[[], Tensors]  # the same once, with the names that a Chain's tensors have
    setup_seconds: float | None = None  # to compile, where the provider does


def anywhere(workload: Workload, mode: str) -> str:
    return ""


def plain_chain(workload: Workload) -> Chain:
    return Chain(nn.LSTM, workload)


@dataclass(frozen=True)
class Provider:
    name: str
    label: str  # in a table, below the row it belongs to
    prepare: Callable[[Problem, str], Prepared]
    why_not: Callable[[Workload, str], str] = anywhere  # "" where it can run
    settings: Callable[[], AbstractContextManager] = field(default=contextlib.nullcontext)
    by_default: bool = False
    compiles: bool = False  # the model, by torch.compile, which takes up to minutes
    eps: float | None = None  # of the arithmetic where it is coarser than the row's dtype
    other_arithmetic: bool = False  # than the row's dtype has, for which its limit is
    reference: Callable[[Workload], Chain] = plain_chain  # gives the same in float64


def prepare_model(model: nn.Module, problem: Problem, mode: str) -> Prepared:
    """A torch module, run as it is."""
    load(model, problem)
    once = make_pass(model, problem, mode)
    return Prepared(make_timed(model, problem, mode), named(model, once, mode))


def named(model: nn.Module, once: Callable[[], Tensors], mode: str) -> Callable[[], Tensors]:
    return (lambda: model.named_like_chain(once())) if mode == TRAINING else once


# Rows that many providers cannot run


def why_not_sequences(workload: Workload, mode: str) -> str:
    whole = not (workload.cell or workload.calls > 1 or workload.members)
    return "" if whole else "only for whole sequences"


def why_not_dense(workload: Workload, mode: str) -> str:
    return "only for dense rows" if workload.packed else why_not_sequences(workload, mode)
