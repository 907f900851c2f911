"""Rows whose batch is so many members, each with outputs or gradients of its own.

fused_lstm runs them in one call under ``torch.vmap``, and nn.LSTM, which that refuses, one after
the other. Members of an ensemble have weights of their own; the others share theirs, which gives
the gradients of every sample. In training only gradients of weights are asked for. Those of all
members sum up to those of the whole batch, with which they are compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import fused_lstm

from .problem import Chain, Problem, Tensors, load
from .workload import TRAINING

Pass = tuple[Callable[[], object], Callable[[], Tensors]]  # what is timed, and what is checked


def parts(t: Tensor, members: int) -> Tensor:
    """``[T, B, F]`` as ``[V, T, B/V, F]``."""
    return t.unflatten(1, (members, -1)).movedim(1, 0).contiguous()


def joined(t: Tensor) -> Tensor:
    """The inverse of :func:`parts`."""
    return t.movedim(0, 1).flatten(1, 2)


def loss_of(y: Tensor, weight: Tensor) -> Tensor:
    """With ``weight`` for the gradient of ``y``."""
    return (y * weight).sum()


def named(y: Tensor, states: list[tuple[Tensor, Tensor]]) -> Tensors:
    """The whole batch's outputs from those of all members."""
    ((h_n, c_n),) = states
    return {"y": joined(y), "h_n of 0": joined(h_n), "c_n of 0": joined(c_n)}


def prepare_mapped(problem: Problem, mode: str) -> Pass:
    """All members in one call of fused_lstm."""
    workload, members = problem.workload, problem.workload.members
    model = load(Chain(fused_lstm.LSTM, workload), problem)
    xs, weights = parts(problem.x, members), parts(problem.grad, members)
    if mode != TRAINING:
        outputs = torch.no_grad()(functools.partial(vmap(model), xs))
        return outputs, lambda: named(*outputs())
    parameters = problem.parameters
    if workload.ensemble:
        parameters = {n: p.expand(members, *p.shape).clone() for n, p in parameters.items()}

    def loss(parameters: Tensors, x: Tensor, weight: Tensor) -> Tensor:
        return loss_of(functional_call(model, parameters, (x,))[0], weight)

    gradients = vmap(grad(loss), (0 if workload.ensemble else None, 0, 0))
    run = functools.partial(gradients, parameters, xs, weights)
    return run, lambda: {name: each.sum(0) for name, each in run().items()}


def prepare_loop(problem: Problem, mode: str) -> Pass:
    """One member after the other through nn.LSTM."""
    workload, members = problem.workload, problem.workload.members
    own = members if workload.ensemble else 1
    models = [load(Chain(nn.LSTM, workload), problem) for _ in range(own)] * (members // own)
    xs, weights = (parts(t, members).unbind() for t in (problem.x, problem.grad))

    @torch.no_grad()
    def outputs() -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Stacked, as torch.vmap gives them."""
        found = [model(x) for model, x in zip(models, xs, strict=True)]
        y = torch.stack([y for y, _ in found])
        h_n, c_n = zip(*(state for _, (state,) in found), strict=True)
        return y, [(torch.stack(h_n), torch.stack(c_n))]

    def gradients() -> list[tuple[Tensor, ...]]:
        return [
            torch.autograd.grad(loss_of(model(x)[0], weight), list(model.parameters()))
            for model, x, weight in zip(models, xs, weights, strict=True)
        ]

    def total() -> Tensors:
        each = [torch.stack(found).sum(0) for found in zip(*gradients(), strict=True)]
        return dict(zip(problem.parameters, each, strict=True))

    return (gradients, total) if mode == TRAINING else (outputs, lambda: named(*outputs()))
