"""The implementations that are compared, each as a function that runs a problem in a mode."""

from __future__ import annotations

import contextlib
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import nn

import fused_lstm
from fused_lstm import _ops

from . import members
from .cells import CellLoop
from .passes import make_pass, make_timed
from .problem import Chain, Problem, Tensors, load
from .sequences import (
    CellsChain,
    CellsLoopChain,
    LengthsChain,
    PackingChain,
    PointwiseChain,
    ResetsChain,
    ResetsLoopChain,
    StreamChain,
)
from .tutorial import HandWritten
from .workload import TRAINING, Workload

BASELINE = "nn.LSTM"
FUSED = "fused_lstm"
# nn.LSTM is unrolled where it is compiled: at 128 steps that takes minutes.
MOST_COMPILED_STEPS = 50
RECOMPUTE = 64  # steps that backward computes again at once
PRECISIONS = ("tf32", "bf16")  # of float32 in PyTorch's recurrent layers, besides its own


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
    reference: Callable[[Workload], Chain] = plain_chain  # gives the same in float64


def prepare_model(model: nn.Module, problem: Problem, mode: str) -> Prepared:
    """A torch module, run as it is."""
    load(model, problem)
    once = make_pass(model, problem, mode)
    return Prepared(make_timed(model, problem, mode), named(model, once, mode))


def named(model: nn.Module, once: Callable[[], Tensors], mode: str) -> Callable[[], Tensors]:
    return (lambda: model.named_like_chain(once())) if mode == TRAINING else once


def lstm_provider(
    lstm: type, cell: type, of_members: Callable[[Problem, str], members.Pass] | None = None
) -> Callable[[Problem, str], Prepared]:
    def prepare(problem: Problem, mode: str) -> Prepared:
        workload = problem.workload
        if workload.members and of_members:
            return Prepared(*of_members(problem, mode))
        model = CellLoop(cell, workload) if workload.cell else Chain(lstm, workload)
        return prepare_model(model, problem, mode)

    return prepare


prepare_plain = lstm_provider(nn.LSTM, nn.LSTMCell, members.prepare_loop)
prepare_fused = lstm_provider(fused_lstm.LSTM, fused_lstm.LSTMCell, members.prepare_mapped)
prepare_whole = lstm_provider(fused_lstm.LSTM, fused_lstm.LSTMCell)


def why_not_whole(workload: Workload, mode: str) -> str:
    return "" if workload.members and mode != TRAINING else "only for outputs of members"


# What a user would run instead where nn.LSTM is slow


def prepare_padded(problem: Problem, mode: str) -> Prepared:
    padded = problem.padded()
    prepared = prepare_plain(padded, mode)

    def check() -> Tensors:
        tensors = prepared.check()
        if problem.workload.bidirectional:
            return {}  # the backward direction starts in the padding, so nothing is the same
        live = {name: problem.pack(t) for name, t in tensors.items() if name in ("x", "y")}
        parameters = {name: t for name, t in tensors.items() if mode == TRAINING and name != "x"}
        return parameters | live

    return Prepared(prepared.run, check)


def why_not_padded(workload: Workload, mode: str) -> str:
    return "" if workload.packed else "only for packed rows"


# What fused_lstm has beside nn.LSTM


def padded_provider(chain: type[LengthsChain]) -> Callable[[Problem, str], Prepared]:
    """The same rows padded, with their lengths."""

    def prepare(problem: Problem, mode: str) -> Prepared:
        prepared = prepare_model(chain(problem.workload), problem.padded(), mode)

        def check() -> Tensors:
            tensors = prepared.check()
            return {n: problem.pack(t) if n in ("x", "y") else t for n, t in tensors.items()}

        return Prepared(prepared.run, check)

    return prepare


def prepare_cells(problem: Problem, mode: str) -> Prepared:
    model = CellsChain(problem.workload)
    prepared = prepare_model(model, problem, mode)
    return Prepared(prepared.run, lambda: prepared.check() | model.more(problem.x))


def why_not_cells(workload: Workload, mode: str) -> str:
    whole = not (workload.cell or workload.calls > 1 or workload.members)
    return "" if whole else "only for whole sequences"


def resets_provider(chain: type[ResetsChain]) -> Callable[[Problem, str], Prepared]:
    def prepare(problem: Problem, mode: str) -> Prepared:
        return prepare_model(chain(problem.workload), problem, mode)

    return prepare


def why_not_dense(workload: Workload, mode: str) -> str:
    return "only for dense rows" if workload.packed else why_not_cells(workload, mode)


def why_not_resets(workload: Workload, mode: str) -> str:
    return "only in one direction" if workload.bidirectional else why_not_dense(workload, mode)


def recomputing_lstm(*sizes: int, **options: object) -> nn.Module:
    return fused_lstm.LSTM(*sizes, **options, recompute=RECOMPUTE)


def why_not_recompute(workload: Workload, mode: str) -> str:
    return why_not_cells(workload, mode) if mode == TRAINING else "only for training"


def prepare_stream(problem: Problem, mode: str) -> Prepared:
    return prepare_model(StreamChain(problem.workload), problem, mode)


def why_not_stream(workload: Workload, mode: str) -> str:
    return "" if workload.calls > 1 else "only for one step at a time"


def prepare_float32(problem: Problem, mode: str) -> Prepared:
    return prepare_plain(problem.to(torch.float32), mode)


def why_not_float32(workload: Workload, mode: str) -> str:
    low = workload.dtype in (torch.float16, torch.bfloat16)
    return "" if low else "only for float16 and bfloat16"


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


# fused_lstm under other settings


def prepare_pointwise(problem: Problem, mode: str) -> Prepared:
    return prepare_model(PointwiseChain(problem.workload), problem, mode)


def prepare_fused_compile(problem: Problem, mode: str) -> Prepared:
    """The same, compiled as if for the first time."""
    import torch._inductor.config

    with torch._inductor.config.patch(force_disable_caches=True):
        return compile_model(PointwiseChain(problem.workload), problem, mode)


@contextlib.contextmanager
def fallback_only() -> Iterator[None]:
    """As with FUSED_LSTM_DISABLE=1."""
    before = _ops._disabled, _ops._reasons
    _ops._disabled, _ops._reasons = True, {}
    try:
        yield
    finally:
        _ops._disabled, _ops._reasons = before


@contextlib.contextmanager
def thread_count(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def cpu_precision(value: str) -> Iterator[None]:
    """How PyTorch may round float32 in recurrent layers on the CPU: "ieee", "tf32" or "bf16"."""
    setting = torch.backends.mkldnn.rnn
    before = setting.fp32_precision
    setting.fp32_precision = value
    try:
        yield
    finally:
        setting.fp32_precision = before


def why_not_precision(workload: Workload, mode: str) -> str:
    return "" if workload.dtype == torch.float32 else "only for float32"


def prepare_autocast(problem: Problem, mode: str) -> Prepared:
    prepared = prepare_fused(problem.to(torch.float32), mode)

    def cast(function: Callable) -> Callable:
        return torch.autocast(problem.device.type, torch.bfloat16)(function)

    return Prepared(cast(prepared.run), cast(prepared.check))


def why_not_autocast(workload: Workload, mode: str) -> str:
    return "" if workload.dtype == torch.bfloat16 else "only for bfloat16"


ALL = [
    Provider(BASELINE, "nn.LSTM", prepare_plain, by_default=True),
    Provider(FUSED, "fused_lstm", prepare_fused, by_default=True),
    Provider("padded", "nn.LSTM, padded", prepare_padded, why_not_padded, by_default=True),
    Provider("lengths", "fused, lengths", padded_provider(LengthsChain), why_not_padded),
    Provider("packing", "fused, pack and pad", padded_provider(PackingChain), why_not_padded),
    Provider(
        "resets",
        "fused, resets",
        resets_provider(ResetsChain),
        why_not_resets,
        reference=ResetsLoopChain,
    ),
    Provider(
        "reset-loop",
        "nn.LSTM, a step a call",
        resets_provider(ResetsLoopChain),
        why_not_resets,
        reference=ResetsLoopChain,
    ),
    Provider(
        "cells", "fused, return_cells", prepare_cells, why_not_resets, reference=CellsLoopChain
    ),
    Provider(
        "recompute",
        f"fused, recompute={RECOMPUTE}",
        lstm_provider(recomputing_lstm, fused_lstm.LSTMCell),
        why_not_recompute,
    ),
    Provider("stream", "fused, stream()", prepare_stream, why_not_stream),
    Provider("float32", "nn.LSTM, float32", prepare_float32, why_not_float32, by_default=True),
    Provider("linear", "four nn.Linear", prepare_linear, why_not_linear),
    Provider("script", "the same, jit.script", prepare_script, why_not_linear),
    Provider(
        "compile",
        "torch.compile",
        prepare_compile,
        why_not_compile,
        lambda: no_eager(allow_rnn=True),
        compiles=True,
    ),
    Provider("onnxruntime", "onnxruntime", *engine("onnxruntime"), rest_after),
    Provider("openvino", "OpenVINO", *engine("openvino"), rest_after),
    Provider("one-thread", "fused, one thread", prepare_fused, settings=lambda: thread_count(1)),
    Provider(
        "tf32",
        'fused, "tf32"',
        prepare_fused,
        why_not_precision,
        lambda: cpu_precision("tf32"),
        eps=2.0**-10,
    ),
    Provider(
        "bf16",
        'fused, "bf16"',
        prepare_fused,
        why_not_precision,
        lambda: cpu_precision("bf16"),
        eps=2.0**-7,
    ),
    Provider("autocast", "fused, autocast", prepare_autocast, why_not_autocast),
    Provider("whole", "fused, one batch", prepare_whole, why_not_whole),
    Provider("pointwise", "fused, in a model", prepare_pointwise, why_not_dense),
    Provider(
        "fused-compile",
        "that, torch.compile",
        prepare_fused_compile,
        why_not_dense,
        no_eager,
        compiles=True,
    ),
    Provider("fallback", "fused, fallback", prepare_fused, settings=fallback_only),
]
PROVIDERS = {provider.name: provider for provider in ALL}
