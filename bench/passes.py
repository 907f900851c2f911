"""What is timed and checked: one pass of a model over a problem's input, in each mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .problem import Problem, Tensors, rows_of, with_rows
from .workload import INFERENCE, TRAINING, Workload

CHECKED_CALLS = 3  # of a row of many: the second is the first that starts from a state


def forward(call: Callable, problem: Problem) -> Tensors:
    """Every output by name."""
    y, states = call(problem.x)
    outputs = {"y": rows_of(y)}
    for i, (h_n, c_n) in enumerate(states):
        outputs |= {f"h_n of {i}": h_n, f"c_n of {i}": c_n}
    return outputs


def carried(model: nn.Module, problem: Problem) -> Tensors:
    """As `forward`, of the last of a few calls that hand on their state."""
    state = None
    for _ in range(CHECKED_CALLS):
        y, state = model.step(problem.x, state)
    h_n, c_n = model.tensors_of(state)
    return {"y": y, "h_n of 0": h_n, "c_n of 0": c_n}


def output_in_loss(y: Tensor, workload: Workload) -> Tensor:
    """The part of the output that a loss is computed from."""
    if not workload.last_step:
        return y
    return y[:, -1] if workload.batch_first else y[-1]


def train(model: nn.Module, call: Callable, problem: Problem) -> Tensors:
    """Forward and backward: gradients of the input and of every parameter, by name."""
    rows = rows_of(problem.x).detach().requires_grad_()
    y = output_in_loss(rows_of(call(with_rows(problem.x, rows))[0]), problem.workload)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(y, [rows, *parameters], problem.grad)
    return dict(zip(("x", *names), gradients, strict=True))


def make_pass(
    model: nn.Module, problem: Problem, mode: str, call: Callable | None = None
) -> Callable[[], Tensors]:
    """A function without arguments that runs the mode once and returns its tensors; of a row of
    many calls, a few.

    `call` is what stands in for the model where that was compiled.
    """
    call = model if call is None else call
    if mode == TRAINING:
        return lambda: train(model, call, problem)
    if problem.workload.calls > 1:
        return torch.no_grad()(lambda: carried(model, problem))
    if mode == INFERENCE:
        return torch.no_grad()(lambda: forward(call, problem))
    return lambda: forward(call, problem)


def make_timed(
    model: nn.Module, problem: Problem, mode: str, call: Callable | None = None
) -> Callable[[], object]:
    """The function that is timed: as `make_pass`, or `workload.calls` steps with one state."""
    if problem.workload.calls == 1:
        return make_pass(model, problem, mode, call)
    x, step = problem.x, model.step

    @torch.no_grad()
    def steps() -> None:
        state = None
        for _ in range(problem.workload.calls):
            _, state = step(x, state)

    return steps
