"""Errors against float64, and how they compare with nn.LSTM's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.passes import Tensors, make_pass
from bench.providers import BASELINE, FUSED, Chain, Sequence, make_reference, rows_of, with_rows
from bench.workloads import Workload


@dataclass(frozen=True)
class Accuracy:
    """Largest errors of outputs (inference, forward) or of gradients (training)."""

    errors: dict[str, float]  # by provider; relative to the largest element of the same tensor
    ratio: float | None  # fused error over nn.LSTM's, for the worst tensor; None in float64


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected element."""
    difference = (actual.double() - expected).abs().max().item()
    return difference / max(expected.abs().max().item(), torch.finfo(torch.float64).tiny)


def compare(
    models: dict[str, Chain], x: Sequence, grad: Tensor, workload: Workload, mode: str
) -> Accuracy:
    """Runs every model and a float64 nn.LSTM once on the same input."""
    reference = make_reference(models[BASELINE], workload)
    x_double = with_rows(x, rows_of(x).double())
    expected: Tensors = make_pass(reference, x_double, grad.double(), workload, mode)()
    errors = {}
    for name, model in models.items():
        actual = make_pass(model, x, grad, workload, mode)()
        errors[name] = {key: largest_error(actual[key], expected[key]) for key in expected}
    largest = {name: max(each.values()) for name, each in errors.items()}
    if workload.dtype == torch.float64:  # the reference is nn.LSTM in float64 itself
        return Accuracy(largest, None)
    # Half a unit in the last place is what rounding the exact result costs: nobody can do better.
    floor = torch.finfo(workload.dtype).eps / 2
    ratios = [errors[FUSED][key] / max(errors[BASELINE][key], floor) for key in expected]
    return Accuracy(largest, max(ratios))
