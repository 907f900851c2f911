"""What is timed and checked: one pass of a model over a workload's input, in each mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.providers import Chain, Sequence, rows_of, with_rows
from bench.workloads import INFERENCE, TRAINING, Workload

Tensors = dict[str, Tensor]


def forward(model: Chain, x: Sequence) -> Tensors:
    """Every output by name."""
    y, states = model(x)
    outputs = {"y": rows_of(y)}
    for i, (h_n, c_n) in enumerate(states):
        outputs |= {f"h_n of {i}": h_n, f"c_n of {i}": c_n}
    return outputs


def output_in_loss(y: Tensor, workload: Workload) -> Tensor:
    """The part of the output that a loss is computed from."""
    if not workload.last_step:
        return y
    return y[:, -1] if workload.batch_first else y[-1]


def make_grad(model: Chain, x: Sequence, workload: Workload) -> Tensor:
    """A random gradient for the output, the same for every model."""
    with torch.no_grad():
        y = output_in_loss(rows_of(model(x)[0]), workload)
    generator = torch.Generator().manual_seed(2)
    return torch.randn(y.shape, generator=generator).to(y)


def train(model: Chain, x: Sequence, grad: Tensor, workload: Workload) -> Tensors:
    """Forward and backward: gradients of the input and of every parameter, by name."""
    rows = rows_of(x).detach().requires_grad_()
    y = output_in_loss(rows_of(model(with_rows(x, rows))[0]), workload)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(y, [rows, *parameters], grad)
    return dict(zip(("x", *names), gradients, strict=True))


def make_pass(model: Chain, x: Sequence, grad: Tensor, workload: Workload, mode: str) -> Callable:
    """A function without arguments that runs the mode once and returns its tensors."""
    if mode == TRAINING:
        return lambda: train(model, x, grad, workload)
    if mode == INFERENCE:
        return torch.no_grad()(lambda: forward(model, x))
    return lambda: forward(model, x)


def make_timed(model: Chain, x: Sequence, grad: Tensor, workload: Workload, mode: str) -> Callable:
    """The function that is timed: as `make_pass`, or `workload.calls` steps through the module."""
    if workload.calls == 1:
        return make_pass(model, x, grad, workload, mode)
    (lstm,) = model.lstms

    @torch.no_grad()
    def steps() -> None:
        state = None
        for _ in range(workload.calls):
            _, state = lstm(x, state)

    return steps
