"""Every transform of PyTorch, over every state of ``requires_grad``, gives what float64 gives.

The oracle's function goes through the same transform: it is made of plain PyTorch operations.
"""

from __future__ import annotations

import functools

import oracle
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.functional import hessian as autograd_hessian
from torch.autograd.functional import jacobian
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

import fused_lstm

T, I, H = 3, 2, 3  # noqa: E741
LENGTHS = [T, 1]
B = len(LENGTHS)
V = 2  # members of a vmap
VARIANTS = {
    "dense": dict(),
    "packed": dict(packed=True),
    "projected": dict(P=2),
    "bidirectional": dict(D=2, bias=False),
    "all": dict(packed=True, D=2, P=2),
}


class Problem:
    """The layer as a function of ``(x, h0, c0, *weights)``, ours and the oracle's."""

    def __init__(self, packed=False, D=1, P=0, bias=True):
        sizes = [sum(t < n for n in LENGTHS) for t in range(T)]
        self.batch_sizes = torch.tensor(sizes) if packed else None
        offsets = [sum(sizes[:t]) for t in range(T)]
        self.rows = [[offsets[t] + b for t in range(n)] for b, n in enumerate(LENGTHS)]
        self.directions = D
        shapes = [(4 * H, I), (4 * H, P or H), *[(4 * H,)] * (2 * bias), *[(P, H)] * (P > 0)]
        self.count = len(shapes)
        self.shapes = [
            (sum(sizes), I) if packed else (T, B, I),
            (D, B, P or H),
            (D, B, H),
            *shapes * D,
        ]

    def arguments(self, *leading: int, seed: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.randn(*leading, *shape, generator=generator, dtype=torch.float64)
            for shape in self.shapes
        ]

    def groups(self, weights):
        return [weights[d * self.count : (d + 1) * self.count] for d in range(self.directions)]

    def ours(self, x, h0, c0, *weights):
        given = x if self.batch_sizes is None else PackedSequence(x, self.batch_sizes)
        y, (h_n, c_n) = fused_lstm.lstm(
            given, (h0, c0), self.groups(weights), bidirectional=self.directions == 2
        )
        return (y if self.batch_sizes is None else y.data), h_n, c_n

    def exact(self, x, h0, c0, *weights):
        sequences = (
            list(x.unbind(1)) if self.batch_sizes is None else [x[rows] for rows in self.rows]
        )
        ys, h_n, c_n = oracle.lstm(sequences, h0, c0, self.groups(weights), self.directions == 2)
        if self.batch_sizes is None:
            return torch.stack(ys, 1), h_n, c_n
        order = torch.tensor([row for rows in self.rows for row in rows]).argsort()
        return torch.cat(ys)[order], h_n, c_n


def loss_of(f):
    return lambda *args: sum(t.sin().sum() for t in f(*args))


def leaves(args):
    return [t.detach().clone().requires_grad_() for t in args]


def first(f, args, k=0):
    """``f`` of argument ``k`` alone."""
    return lambda t: f(*args[:k], t, *args[k + 1 :])


def members(args, which, dim=0):
    """Arguments with V of each of ``which``, and their ``in_dims``."""
    spread = [torch.stack([t, t.cos()], dim) if k in which else t for k, t in enumerate(args)]
    return spread, tuple(dim if k in which else None for k in range(len(args)))


def mapped(f, args, which, dim=0):
    spread, in_dims = members(args, which, dim)
    return vmap(f, in_dims)(*spread)


def mapped_over_all(f):
    return lambda *args: mapped(f, args, range(len(args)))


def backward(f, args):
    args = leaves(args)
    return torch.autograd.grad(loss_of(f)(*args), args)


def double_backward(f, args):
    args = leaves(args)
    grads = torch.autograd.grad(loss_of(f)(*args), args, create_graph=True)
    return torch.autograd.grad(sum(g.sin().sum() for g in grads), args)


def dual(f, args, which):
    with forward_ad.dual_level():
        given = [forward_ad.make_dual(t, t.cos()) if k in which else t for k, t in enumerate(args)]
        outputs = [forward_ad.unpack_dual(t) for t in f(*given)]
        return [t for o in outputs for t in (o.primal, zeros_for_none(o.tangent, o.primal))]


def zeros_for_none(tangent, primal):
    return torch.zeros_like(primal) if tangent is None else tangent


def dual_backward(f, args):
    """Forward mode over a backward pass whose forward pass was recorded before."""
    args = leaves(args)
    loss = loss_of(f)(*args)
    with forward_ad.dual_level():
        scale = forward_ad.make_dual(torch.ones_like(loss), torch.full_like(loss, 2))
        grads = torch.autograd.grad(loss, args, scale)
        return [forward_ad.unpack_dual(g).tangent for g in grads]


def pushed_pull_back(f, args):
    """jvp over the function that vjp returned, when its transform has ended."""
    outputs, pull_back = vjp(f, *args)
    return jvp(pull_back, (outputs,), (tuple(t.cos() for t in outputs),))


def recorded_pull_back(f, args):
    """Plain autograd through a gradient by torch.func: a loss on a derivative, as in physics."""
    args = leaves(args)
    inner = grad(lambda x: loss_of(f)(x, *args[1:]))(args[0])
    return torch.autograd.grad(inner.sin().sum(), args[1:])


def recorded_vmap_of_grad(f, args):
    args = leaves(args)
    xs = torch.stack([args[0], args[0].cos()])
    inner = vmap(grad(lambda x: loss_of(f)(x, *args[1:])))(xs)
    return torch.autograd.grad(inner.sin().sum(), args[1:])


def per_sample(f, args):
    """Gradients of shared weights for each member."""
    spread, in_dims = members(args, range(3))
    return vmap(grad(loss_of(f), argnums=tuple(range(len(args)))), in_dims)(*spread)


def ensemble(f, args):
    every = range(len(args))
    spread, in_dims = members(args, every)
    return vmap(grad(loss_of(f), argnums=tuple(every)), in_dims)(*spread)


def grad_of_vmap(f, args, which):
    spread, in_dims = members(args, which)
    return grad(
        lambda *a: sum(t.sin().sum() for t in vmap(f, in_dims)(*a)), argnums=tuple(range(len(args)))
    )(*spread)


def checkpointed(f, args, use_reentrant):
    args = leaves(args)
    outputs = checkpoint(f, *args, use_reentrant=use_reentrant)
    return (
        torch.autograd.grad(sum(t.sin().sum() for t in outputs), args)
        if not use_reentrant
        else by_backward(sum(t.sin().sum() for t in outputs), args)
    )


def by_backward(loss, args):
    loss.backward()
    return [t.grad for t in args]


WEIGHTS = range(3, 5)
TRANSFORMS = {
    "backward": backward,
    "double backward": double_backward,
    "forward_ad in x": lambda f, a: dual(f, a, [0]),
    "forward_ad in a weight": lambda f, a: dual(f, a, [4]),
    "forward_ad in all": lambda f, a: dual(f, a, range(len(a))),
    "forward_ad of backward": dual_backward,
    "grad": lambda f, a: grad(loss_of(f), argnums=tuple(range(len(a))))(*a),
    "grad in one": lambda f, a: grad(first(loss_of(f), a, 4))(a[4]),
    "grad of grad": lambda f, a: grad(
        lambda *a: grad(loss_of(f))(*a).sin().sum(), argnums=tuple(range(len(a)))
    )(*a),
    "vjp": lambda f, a: vjp(f, *a)[1](f(*a)),
    "vmap of the pull-back": lambda f, a: vmap(vjp(f, *a)[1])(
        tuple(torch.stack([t, t.cos()]) for t in f(*a))
    ),
    "jvp": lambda f, a: jvp(f, tuple(a), tuple(t.cos() for t in a)),
    "jvp of grad": lambda f, a: jvp(grad(first(loss_of(f), a)), (a[0],), (a[0].cos(),)),
    "jvp of the pull-back": pushed_pull_back,
    "linearize": lambda f, a: linearize(first(f, a), a[0])[1](a[0].cos()),
    "jacrev": lambda f, a: jacrev(f, argnums=(0, 1, 4))(*a),
    "jacfwd": lambda f, a: jacfwd(f, argnums=(0, 2))(*a),
    "hessian": lambda f, a: hessian(loss_of(f), argnums=(0, 1))(*a),
    "jacobian, vectorized": lambda f, a: jacobian(first(f, a, 4), a[4], vectorize=True),
    "jacobian, forward mode": lambda f, a: jacobian(
        first(f, a), a[0], vectorize=True, strategy="forward-mode"
    ),
    "hessian, vectorized": lambda f, a: autograd_hessian(
        first(loss_of(f), a), a[0], vectorize=True
    ),
    "vmap over inputs": lambda f, a: mapped(f, a, [0, 1, 2]),
    "vmap over x": lambda f, a: mapped(f, a, [0], 1),
    "vmap over x, last": lambda f, a: mapped(f, a, [0], -1),
    "vmap over h0": lambda f, a: mapped(f, a, [1], 2),
    "vmap over weights": lambda f, a: mapped(f, a, range(3, len(a))),
    "vmap over a weight": lambda f, a: mapped(f, a, [4], 1),
    "vmap over all": lambda f, a: mapped(f, a, range(len(a))),
    "vmap of vmap": lambda f, a: vmap(vmap(first(f, a)))(torch.stack([a[0], a[0].cos()])[None]),
    "vmap over weights of vmap over x": lambda f, a: vmap(
        lambda *w: vmap(lambda x: f(x, *a[1:3], *w))(torch.stack([a[0], a[0].cos()]))
    )(*[torch.stack([t, t.cos()]) for t in a[3:]]),
    "vmap of grad, per sample": per_sample,
    "vmap of grad in a weight": lambda f, a: vmap(
        lambda x: grad(lambda w: loss_of(f)(x, *a[1:4], w, *a[5:]))(a[4])
    )(torch.stack([a[0], a[0].cos()])),
    "vmap of grad, ensemble": ensemble,
    "grad of vmap over inputs": lambda f, a: grad_of_vmap(f, a, range(3)),
    "grad of vmap over all": lambda f, a: grad_of_vmap(f, a, range(len(a))),
    "vmap of jvp": lambda f, a: vmap(lambda x: jvp(lambda t: f(t, *a[1:]), (x,), (x.cos(),)))(
        torch.stack([a[0], a[0].cos()])
    ),
    "vmap of hessian": lambda f, a: vmap(hessian(first(loss_of(f), a)))(
        torch.stack([a[0], a[0].cos()])
    ),
    "backward of vmap over all": lambda f, a: backward(mapped_over_all(f), a),
    "double backward of vmap over all": lambda f, a: double_backward(mapped_over_all(f), a),
    "forward_ad of backward of vmap over all": lambda f, a: dual_backward(mapped_over_all(f), a),
    "jacobian of vmap over all, vectorized": lambda f, a: jacobian(
        first(mapped_over_all(f), a, 4), a[4], vectorize=True
    ),
    "functionalize": lambda f, a: functionalize(f)(*a),
    "functionalize of grad": lambda f, a: functionalize(grad(first(loss_of(f), a)))(a[0]),
    "autograd through grad": recorded_pull_back,
    "autograd through vmap of grad": recorded_vmap_of_grad,
    "checkpoint": lambda f, a: checkpointed(f, a, False),
    "checkpoint, reentrant": lambda f, a: checkpointed(f, a, True),
}
OWN_GRAD_MODE = {"backward", "double backward", "forward_ad of backward", "checkpoint"}
OWN_GRAD_MODE |= {"checkpoint, reentrant", "autograd through grad"}
OWN_GRAD_MODE |= {"autograd through vmap of grad", "forward_ad of backward of vmap over all"}
OWN_GRAD_MODE |= {"backward of vmap over all", "double backward of vmap over all"}


@functools.cache
def expected(transform: str, variant: str):
    problem = Problem(**VARIANTS[variant])
    return detached(TRANSFORMS[transform](problem.exact, problem.arguments()))


def detached(result) -> list[Tensor]:
    return [t.detach() for t in torch.utils._pytree.tree_leaves(result)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_state_of_requires_grad(backend, transform, variant):
    problem = Problem(**VARIANTS[variant])
    want = expected(transform, variant)
    for grad_mode in (True,) if transform in OWN_GRAD_MODE else (True, False):
        for recorded in ((), (0, 1, 2), range(3, 40), range(40)):
            args = [t.requires_grad_(k in recorded) for k, t in enumerate(problem.arguments())]
            with torch.set_grad_enabled(grad_mode):
                found = detached(TRANSFORMS[transform](problem.ours, args))
            torch.testing.assert_close(found, want)
