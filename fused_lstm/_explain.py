"""``explain()``: which algorithm runs a call, and why."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fused_lstm import _ops, sequences
from fused_lstm._autocast import autocast_dtype
from fused_lstm._checks import NO_STEPS
from fused_lstm.autograd import any_requires_grad
from fused_lstm.cell import LSTMCell
from fused_lstm.module import LSTM
from fused_lstm.sequences import SequenceCall


def explain(
    module: LSTM | LSTMCell,
    input: Tensor | PackedSequence,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    return_cells: bool = False,
    return_gates: bool = False,
) -> str:
    """Say, layer by layer, which algorithm ``module(input)`` would run here and now, and why.

    What counts as here and now: the device, the number of threads (one inside another parallel
    region, and after a fork that lost them), and whether gradients are recorded (call it under
    ``torch.no_grad()`` for inference). Nothing is computed.

    Args:
        module: a ``fused_lstm.LSTM`` or ``fused_lstm.LSTMCell``.
        input: an input that the module takes.
        lengths: as of the call, if it has any.
        reset: likewise.
        return_cells: likewise.
        return_gates: likewise.

    Returns:
        Lines to print.

    Raises:
        TypeError: for any other module, for arguments of a type that it refuses, for options of a
            cell, and for a ``recompute`` of the module that is no int.
        ValueError: for shapes and lengths that it refuses, and a negative ``recompute``.
    """
    if not isinstance(module, (LSTM, LSTMCell)):
        raise TypeError(
            "explain() takes a fused_lstm.LSTM or fused_lstm.LSTMCell, "
            f"got {type(module).__module__}.{type(module).__qualname__}"
        )
    recompute = getattr(module, "recompute", 0)
    _refuse_what_the_module_does(
        module, input, SequenceCall(lengths, reset, None, return_cells, return_gates, recompute)
    )
    data = input.data if isinstance(input, PackedSequence) else input
    dtype = data.dtype if data.dtype == torch.float64 else autocast_dtype(data) or data.dtype
    training = torch.is_grad_enabled() and any_requires_grad(data, *module.parameters())
    steps, batch, batch_sizes = _extent(module, input)
    form = "packed" if batch_sizes else ""
    if lengths is not None or reset is not None:
        form = f"{batch} rows of {steps} steps in segments"
        mask = reset
        if reset is not None and reset.dim() == 1:  # unbatched
            mask = reset.unsqueeze(1)
        elif reset is not None and getattr(module, "batch_first", False):
            mask = reset.t()
        batch_sizes = _segment_sizes(steps, batch, lengths, mask)
        steps, batch = len(batch_sizes), batch_sizes[0] if batch_sizes else 0
    where = str(data.device)
    if data.device.type == "cpu":
        where += f", {_cpu_threads()} threads"
    lines = [
        f"{module}: {steps} steps, batch {batch}{f' ({form})' if form else ''}, "
        f"{_name(dtype)} on {where}, {'gradients recorded' if training else 'inference'}"
    ]
    reason = _ops.unavailable(data.device, dtype)
    if reason is not None:
        return "\n".join([*lines, f"  every layer: plain PyTorch: {reason}"])
    no_kernel = sequences.unavailable(data)
    if no_kernel is not None and (lengths is not None or reset is not None):
        return "\n".join([*lines, f"  every layer: plain PyTorch, step by step: {no_kernel}"])
    inside = return_cells or return_gates
    if recompute:
        lines.append(f"  recompute: {_recompute(recompute, training, inside, no_kernel)}")
    if not steps:
        return "\n".join([*lines, "  every layer: nothing to compute"])

    hidden_size, proj_size = module.hidden_size, getattr(module, "proj_size", 0)
    directions = 2 if getattr(module, "bidirectional", False) else 1
    layers = getattr(module, "num_layers", 1)
    for layer in range(layers):
        is_last = layer == layers - 1
        if inside and is_last and no_kernel is not None:
            lines.append(f"  layer {layer}: plain PyTorch, step by step: {no_kernel}")
            continue
        with torch.cuda.device_of(data):  # "cuda" means the current one
            plan = _ops.extension.plan(
                steps=steps,
                batch=batch,
                input_size=directions * (proj_size or hidden_size) if layer else module.input_size,
                hidden_size=hidden_size,
                proj_size=proj_size,
                directions=directions,
                dtype=_name(dtype),
                device="cuda" if data.is_cuda else "cpu",
                training=training,
                batch_sizes=batch_sizes,
                keep_every=0 if no_kernel or (inside and is_last) else recompute,
            )
        lines += _plan_lines(layer, plan)
        if inside and is_last:
            lines.append("    c and the gates of every step are kept, for the caller")
    return "\n".join(lines)


def _refuse_what_the_module_does(
    module: LSTM | LSTMCell, input: Tensor | PackedSequence, call: SequenceCall
) -> None:
    """Arguments that the module would not run, as far as shapes and lengths tell."""
    cell, packed = isinstance(module, LSTMCell), isinstance(input, PackedSequence)
    if cell and not call.is_plain:
        options = ("lengths", "reset", "return_cells", "return_gates")
        given = [name for name in options if getattr(call, name) is not getattr(SequenceCall, name)]
        raise TypeError(f"expected input alone for an LSTMCell, got {', '.join(given)}")
    if not packed and input.dim() not in ((1, 2) if cell else (2, 3)):
        dims = "1D or 2D" if cell else "2D or 3D"
        name = type(module).__name__
        raise ValueError(f"{name}: expected input to be {dims}, got {input.dim()}D instead")
    features = (input.data if packed else input).shape[-1]
    if features != module.input_size:
        raise ValueError(f"expected input of {module.input_size} features, got {features}")
    if cell:
        return
    directions = 2 if module.bidirectional else 1
    call.check(input, module.batch_first, directions * module.num_layers)
    steps, _, _ = _extent(module, input)
    if not steps:
        raise ValueError(NO_STEPS)
    for row, length in enumerate([] if call.lengths is None else call.lengths.tolist()):
        if not 0 <= length <= steps:  # in the words of csrc/cpu/sequence_ops.cpp
            raise ValueError(
                f"expected lengths from 0 to {steps}, the steps of the input, got {length} for "
                f"row {row}"
            )


def _recompute(every: int, training: bool, inside: bool, no_kernel: str | None) -> str:
    """What recompute does in a call."""
    if no_kernel is not None:
        return f"of no effect: {no_kernel}"
    if not training:
        return "of no effect: nothing is kept in inference"
    but = ", but for the last layer, whose own are returned" if inside else ""
    return f"c is kept before every block of {every} steps, gates are not{but}"


def _cpu_threads() -> int:
    """Threads that a call made here and now may have."""
    return _ops.extension.available_threads() if _ops.extension else torch.get_num_threads()


def _extent(module: LSTM | LSTMCell, input: Tensor | PackedSequence) -> tuple[int, int, list[int]]:
    """Steps, batch and, where packed, the batch of each step."""
    if isinstance(input, PackedSequence):
        batch_sizes = input.batch_sizes.tolist()
        return len(batch_sizes), batch_sizes[0], batch_sizes
    if isinstance(module, LSTMCell):
        return 1, input.shape[0] if input.dim() == 2 else 1, []
    if input.dim() == 2:
        return input.shape[0], 1, []
    batch_dim = 0 if module.batch_first else 1
    return input.shape[1 - batch_dim], input.shape[batch_dim], []


def _segment_sizes(
    steps: int, batch: int, lengths: Tensor | None, reset: Tensor | None
) -> list[int]:
    """Segments that are alive at each of their steps: what csrc/segments.cpp makes of the call."""
    ends = [steps] * batch if lengths is None else lengths.tolist()
    found: list[int] = []
    for row, end in enumerate(ends):
        marks = [] if reset is None else reset[1:end, row].nonzero().flatten().tolist()
        edges = [0, *(mark + 1 for mark in marks), end]
        found += [b - a for a, b in pairwise(edges) if b > a]
    return [sum(size > step for size in found) for step in range(max(found, default=0))]


def _plan_lines(layer: int, plan: Mapping[str, Any]) -> list[str]:
    lines = [f"  layer {layer}: {plan['algorithm']}: {plan['why']}"]
    facts = {k: v for k, v in plan.items() if k not in ("algorithm", "why")}
    details = ", ".join(f"{k}={v}" for k, v in facts.items() if not isinstance(v, list))
    if details:
        lines.append(f"    {details}")
    for name, reasons in facts.items():
        if isinstance(reasons, list):
            lines += [f"    {name} {reason}" for reason in reasons]
    return lines


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
