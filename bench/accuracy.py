"""Errors against float64, and whether a provider's result is right at all."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .passes import make_pass
from .problem import Chain, Problem, Tensors, load
from .workload import FORWARD, INFERENCE, TRAINING, Workload

# A result is called wrong where it is this much less exact than nn.LSTM's.
WRONG = 10.0
# In float64 the reference is nn.LSTM itself, whose own error is not known: that of a sum of n
# products is below n units in the last place, and gradients sum over thousands of rows.
FLOAT64_UNITS = 1000
# What nn.LSTM itself may be off by, and so excuse in others: several times the most that it was on
# any row, which was 9e-6 in float32, 0.056 in bfloat16 and 0.02 in float16, in training. In float64
# that is what others may be off by, and TF32 keeps as many bits as float16.
BASELINE_BOUNDS = {
    torch.float64: FLOAT64_UNITS * torch.finfo(torch.float64).eps,
    torch.float32: 1e-4,
    torch.bfloat16: 0.2,
    torch.float16: 0.06,
}
TF32_BOUND = BASELINE_BOUNDS[torch.float16]
# What the tests allow (tests/oracle.py): this many times nn.LSTM's error, and units in the last
# place of the largest element, more where so few elements make it a matter of luck who errs less.
ALLOWED = {INFERENCE: 2, FORWARD: 2, TRAINING: 3}
FEW_ELEMENTS, UNITS, UNITS_OF_FEW = 256, 1, 4


class Reference:
    """What a model gives for a problem in float64; computed when it is asked for, once."""

    def __init__(self, problem: Problem, model: Callable[[Workload], Chain]) -> None:
        self.problem = problem.to(torch.float64)
        self.model = load(model(problem.workload), self.problem)

    @functools.cached_property
    def more(self) -> Tensors:
        with torch.no_grad():
            return self.model.more(self.problem.x)

    @functools.cached_property
    def outputs(self) -> Tensors:
        return make_pass(self.model, self.problem, INFERENCE)() | self.more

    @functools.cached_property
    def gradients(self) -> Tensors:
        return make_pass(self.model, self.problem, TRAINING)() | self.more

    def expected(self, mode: str) -> Tensors:
        return self.gradients if mode == TRAINING else self.outputs


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected element; NaN if there is any."""
    difference = (actual.detach().double() - expected).abs().max().item()
    return difference / max(expected.abs().max().item(), torch.finfo(torch.float64).tiny)


def errors(actual: Tensors, expected: Tensors) -> dict[str, float]:
    """By tensor, of those that a provider gives."""
    return {name: largest_error(t, expected[name]) for name, t in actual.items()}


def largest(by_tensor: dict[str, float]) -> float | None:
    """The largest error, NaN before all others; None where nothing could be compared."""
    return max(by_tensor.values(), key=lambda e: math.inf if math.isnan(e) else e, default=None)


def error_ratio(
    ours: dict[str, float], theirs: dict[str, float], dtype: torch.dtype
) -> float | None:
    """Error over nn.LSTM's, for the worst tensor; None where that is not known."""
    if dtype == torch.float64 or not theirs:
        return None
    # Half a unit in the last place is what rounding the exact result costs: nobody can do better.
    floor = torch.finfo(dtype).eps / 2
    both = {name: (e, theirs[name]) for name, e in ours.items() if name in theirs}
    return largest({name: e / max(other, floor) for name, (e, other) in both.items()})


def share_of_allowed(
    ours: dict[str, float],
    theirs: dict[str, float],
    expected: Tensors,
    dtype: torch.dtype,
    mode: str,
) -> float | None:
    """Error over the one that the tests allow, for the worst tensor; None where nn.LSTM's own is
    not known.
    """
    if dtype == torch.float64:
        return None

    def allowed(name: str) -> float:
        units = UNITS if expected[name].numel() >= FEW_ELEMENTS else UNITS_OF_FEW
        return ALLOWED[mode] * theirs[name] + units * torch.finfo(dtype).eps

    return largest({name: e / allowed(name) for name, e in ours.items() if name in theirs})


def why_wrong(
    ours: dict[str, float], theirs: dict[str, float], dtype: torch.dtype, eps: float | None
) -> str:
    """The tensor that is not what it has to be, and by how much; "" where all are right.

    `eps` is that of the provider's arithmetic, where it is coarser than the dtype's.
    """
    floor = max(eps or 0, torch.finfo(dtype).eps)
    if dtype == torch.float64:
        floor *= FLOAT64_UNITS / WRONG
    return first_beyond(ours, {name: WRONG * max(theirs.get(name, 0.0), floor) for name in ours})


def why_baseline_wrong(theirs: dict[str, float], workload: Workload) -> str:
    """As `why_wrong`, of nn.LSTM itself, whose own error can be no excuse."""
    bound = TF32_BOUND if workload.tf32 else BASELINE_BOUNDS[workload.dtype]
    return first_beyond(theirs, dict.fromkeys(theirs, bound))


def first_beyond(found: dict[str, float], allowed: dict[str, float]) -> str:
    for name, error in found.items():
        if not error <= allowed[name]:  # also where the error is NaN
            return (
                f"{name} is off by {error:.1e} of its largest element, "
                f"allowed are {allowed[name]:.1e}"
            )
    return ""
