"""Calls of the layer op as the CUDA tests make them, with and without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fused_lstm.reference import lstm_layer as reference

# Of FUSED_LSTM_CUDA_ALGORITHM.
ALGORITHMS = ["steps", "block", "grid", "cluster"]
# Enough steps that a persistent loop is worth its launch.
PACKED = [5, 5, 4, 2, 2, 2] + [1] * 15
REVERSE = [(False,), (True,), (False, True)]


class Call:
    """One layer, its input and the gradients of its outputs."""

    NAMES = ("y", "h_n", "c_n", "gradient of x", "gradient of h0", "gradient of c0")

    def __init__(
        self,
        steps=21,
        batch=3,
        inputs=4,
        hidden=9,
        proj=0,
        bias=True,
        state=True,
        reverse=(False,),
        sizes=None,
        dtype=torch.float64,
        device="cpu",
    ):
        def random(*shape: int, scale: float = 1.0) -> Tensor:
            # On the device: a processor takes a minute for the largest that are timed.
            return (torch.randn(*shape, dtype=torch.float64, device=device) * scale).to(dtype)

        directions, size = len(reverse), proj or hidden
        self.reverse, self.hidden, self.proj = list(reverse), hidden, proj
        self.batch_sizes = None if sizes is None else torch.tensor(sizes)
        batch = batch if sizes is None else sizes[0]
        rows = (steps, batch) if sizes is None else (sum(sizes),)
        self.x = random(*rows, inputs)
        self.h0 = random(directions, batch, size) if state else None
        self.c0 = random(directions, batch, hidden) if state else None
        scale, self.weights = hidden**-0.5, []
        for _ in reverse:
            self.weights += [random(4 * hidden, n, scale=scale) for n in (inputs, size)]
            self.weights += [random(4 * hidden, scale=scale) for _ in range(2)] if bias else []
            self.weights += [random(proj, hidden, scale=scale)] if proj else []
        self.bias = bias
        self.grads = [
            random(*rows, directions * size),
            random(directions, batch, size),
            random(directions, batch, hidden),
        ]

    @property
    def arguments(self) -> tuple:
        """Of the forward op, but for whether to save."""
        return self.x, self.batch_sizes, self.h0, self.c0, self.weights, self.reverse

    def issue(self, ops) -> list[Tensor]:
        """y, h_n, c_n and all gradients, with nothing that waits for the device."""
        y, h_n, c_n, gates, c = ops.lstm_layer(*self.arguments, True)
        needs = [True] * (3 + len(self.weights))
        backward = ops.lstm_layer_backward
        return [y, h_n, c_n, *backward(*self.grads, *self.arguments, y, gates, c, needs)]

    def leaves(self) -> list[Tensor]:
        states = [] if self.h0 is None else [self.h0, self.c0]
        return [self.x, *states, *self.weights]

    def fused(self, ops, needs=None, grads=None) -> list[Tensor]:
        """y, h_n, c_n and the gradients of what is needed."""
        *outputs, gates, c = ops.lstm_layer(*self.arguments, True)
        for saving, unsaved in zip(outputs, ops.lstm_layer(*self.arguments, False), strict=False):
            assert torch.equal(saving, unsaved)
        given = self.h0 is not None
        needs = needs or [True, given, given] + [True] * len(self.weights)
        grads = self.grads if grads is None else grads
        saved = gates.clone(), c.clone()
        result = ops.lstm_layer_backward(*grads, *self.arguments, outputs[0], gates, c, needs)
        assert torch.equal(saved[0], gates)
        assert torch.equal(saved[1], c)
        for gradient, need in zip(result, needs, strict=True):
            assert need or gradient.shape == (0,)
        return [*outputs, *(g for g, need in zip(result, needs, strict=True) if need)]

    def differentiate(self, forward, dtype: torch.dtype) -> list[Tensor]:
        """The same of `forward(leaves)`, by autograd."""
        leaves = [t.to(dtype).requires_grad_() for t in self.leaves()]
        outputs = forward(leaves)
        # Without steps y depends on nothing, and only h0 and c0 have a gradient.
        pairs = [(t, g.to(dtype)) for t, g in zip(outputs, self.grads, strict=True) if t.grad_fn]
        depending, weights = zip(*pairs, strict=True)
        grads = torch.autograd.grad(depending, leaves, weights, materialize_grads=True)
        return [t.detach() for t in outputs] + list(grads)

    def exact(self) -> list[Tensor]:
        def forward(leaves: list[Tensor]):
            given = 3 if self.h0 is not None else 1
            h0, c0 = leaves[1:3] if given == 3 else (None, None)
            return reference(leaves[0], self.batch_sizes, h0, c0, leaves[given:], self.reverse)

        return self.differentiate(forward, torch.float64)

    def theirs(self) -> list[Tensor]:
        """nn.LSTM in the call's dtype."""
        module = nn.LSTM(
            self.x.shape[-1],
            self.hidden,
            bias=self.bias,
            proj_size=self.proj,
            bidirectional=len(self.reverse) == 2,
        )

        def forward(leaves: list[Tensor]):
            given = 3 if self.h0 is not None else 1
            names = [name for names in module._all_weights for name in names]
            x, packed = leaves[0], self.batch_sizes is not None
            y, state = torch.func.functional_call(
                module,
                dict(zip(names, leaves[given:], strict=True)),
                (PackedSequence(x, self.batch_sizes) if packed else x,)
                + ((tuple(leaves[1:3]),) if given == 3 else ()),
            )
            return [y.data if packed else y, *state]

        return self.differentiate(forward, self.x.dtype)


def check_exact(call: Call, ops) -> None:
    for ours, exact in zip(call.fused(ops), call.exact(), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-12)
