"""What else computes an LSTM: other ways to write it in PyTorch, and engines for inference."""

from __future__ import annotations

import contextlib
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from .passes import make_pass, make_timed
from .problem import Chain, Problem, load
from .provider import Prepared, named, plain_chain, prepare_model, why_not_dense
from .tutorial import HandWritten
from .workload import TRAINING, Workload

# nn.LSTM is unrolled where it is compiled: at 128 steps that takes minutes.
MOST_COMPILED_STEPS = 50


# Other ways to write an LSTM in PyTorch


def prepare_linear(problem: Problem, mode: str) -> Prepared:
    return prepare_model(HandWritten(problem.workload), problem, mode)


def why_not_linear(workload: Workload, mode: str) -> str:
    plain = not (workload.packed or workload.bidirectional or workload.proj)
    plain = plain and not (workload.batch_first or workload.calls > 1 or workload.members)
    return "" if plain else "only for dense rows in one direction"


def prepare_script(problem: Problem, mode: str) -> Prepared:
    model = HandWritten(problem.workload)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and still what many use
        for k, layer in enumerate(model.layers):
            model.layers[k] = torch.jit.script(layer)
        prepared = prepare_model(model, problem, mode)
        for _ in range(3):  # it records twice, then optimises
            prepared.run()
    return Prepared(prepared.run, prepared.check, time.perf_counter() - start)


def prepare_compile(problem: Problem, mode: str) -> Prepared:
    return compile_model(plain_chain(problem.workload), problem, mode)


def compile_model(model: Chain, problem: Problem, mode: str) -> Prepared:
    load(model, problem)
    compiled = torch.compile(model)
    start = time.perf_counter()
    run = make_timed(model, problem, mode, compiled)
    run()
    check = named(model, make_pass(model, problem, mode, compiled), mode)
    return Prepared(run, check, time.perf_counter() - start)


def why_not_compile(workload: Workload, mode: str) -> str:
    if reason := why_not_dense(workload, mode):
        return reason
    if workload.steps > MOST_COMPILED_STEPS:
        return f"only up to {MOST_COMPILED_STEPS} steps"
    return ""


def no_eager(**others: bool) -> AbstractContextManager:
    """An error where torch.compile would go on without compiling, as it has compiled too often."""
    import torch._dynamo

    return torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, **others)


# Engines for inference


@contextlib.contextmanager
def rest_after() -> Iterator[None]:
    """An engine's own threads wait on their cores for the next call, up to 50 ms, which would slow
    whoever comes after it.
    """
    yield
    time.sleep(0.06)


def engine(name: str) -> tuple[Callable, Callable]:
    """prepare and why_not of an engine that reads ONNX."""

    def prepare(problem: Problem, mode: str) -> Prepared:
        from . import engines

        run, check = engines.PREPARE[name](problem)
        return Prepared(run, check)

    def why_not(workload: Workload, mode: str) -> str:
        if missing := [m for m in ("onnx", name) if not importlib.util.find_spec(m)]:
            return f"not installed: {', '.join(missing)}"
        plain = not (workload.packed or workload.proj or workload.cell or workload.batch_first)
        plain = plain and not workload.members
        if mode == TRAINING or not plain or workload.dtype != torch.float32:
            return "only for float32 inference, dense and without projection"
        return ""

    return prepare, why_not
