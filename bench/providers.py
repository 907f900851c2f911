"""The implementations that are compared, each as a function that runs a problem in a mode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

import fused_lstm
from fused_lstm import _ops

from . import members
from .cells import CellLoop
from .problem import Chain, Problem, Tensors
from .provider import (
    Prepared,
    Provider,
    prepare_model,
    why_not_dense,
    why_not_sequences,
)
from .rivals import (
    compile_model,
    engine,
    no_eager,
    prepare_compile,
    prepare_linear,
    prepare_script,
    rest_after,
    why_not_compile,
    why_not_linear,
)
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
from .workload import TRAINING, Workload

BASELINE = "nn.LSTM"
FUSED = "fused_lstm"
RECOMPUTE = 64  # steps that backward computes again at once
PRECISIONS = ("tf32", "bf16")  # of float32 in PyTorch's recurrent layers, besides its own


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


def resets_provider(chain: type[ResetsChain]) -> Callable[[Problem, str], Prepared]:
    def prepare(problem: Problem, mode: str) -> Prepared:
        return prepare_model(chain(problem.workload), problem, mode)

    return prepare


def why_not_resets(workload: Workload, mode: str) -> str:
    return "only in one direction" if workload.bidirectional else why_not_dense(workload, mode)


def recomputing_lstm(*sizes: int, **options: object) -> nn.Module:
    return fused_lstm.LSTM(*sizes, **options, recompute=RECOMPUTE)


def why_not_recompute(workload: Workload, mode: str) -> str:
    return why_not_sequences(workload, mode) if mode == TRAINING else "only for training"


def prepare_stream(problem: Problem, mode: str) -> Prepared:
    return prepare_model(StreamChain(problem.workload), problem, mode)


def why_not_stream(workload: Workload, mode: str) -> str:
    return "" if workload.calls > 1 else "only for one step at a time"


def prepare_float32(problem: Problem, mode: str) -> Prepared:
    return prepare_plain(problem.to(torch.float32), mode)


def why_not_float32(workload: Workload, mode: str) -> str:
    low = workload.dtype in (torch.float16, torch.bfloat16)
    return "" if low else "only for float16 and bfloat16"


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
    Provider(
        "lengths",
        "fused, lengths",
        padded_provider(LengthsChain),
        why_not_padded,
        by_default=True,
    ),
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
        "nn.LSTM step by step",
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
    Provider("stream", "fused, stream()", prepare_stream, why_not_stream, by_default=True),
    Provider(
        "float32",
        "nn.LSTM, float32",
        prepare_float32,
        why_not_float32,
        by_default=True,
        other_arithmetic=True,
    ),
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
        other_arithmetic=True,
    ),
    Provider(
        "bf16",
        'fused, "bf16"',
        prepare_fused,
        why_not_precision,
        lambda: cpu_precision("bf16"),
        eps=2.0**-7,
        other_arithmetic=True,
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
RIVALS = ("linear", "script", "compile", "onnxruntime", "openvino")  # that are neither of the two
