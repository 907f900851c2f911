"""``vmap`` over calls with lengths, resets, cells and recompute: each member as if called alone."""

import pytest
import torch
from cases import Case, leaves
from test_sequences import LENGTHS, MASK
from test_transforms_ops import Ops
from torch.func import functional_call, stack_module_state, vmap

import fused_lstm

V, T, B, I, H, P = 3, 5, 4, 3, 6, 2  # noqa: E741
CASE = Case(T=T, B=B, I=I, H=H, dtype=torch.float64)
ALL_LENGTHS = torch.stack([LENGTHS, LENGTHS.flip(0), torch.tensor([5, 5, 1, 2])])
ALL_MASKS = torch.stack([MASK, MASK.flip(0), MASK.roll(1, 1)])
SHAPES = {
    "plain": dict(),
    "projected, both directions": dict(P=P, bidirectional=True),
    "two layers": dict(layers=2),
}


def arguments(case):
    """Of every member: x, h0, c0, lengths, reset, and h and c after a reset."""
    torch.manual_seed(3)
    states = [torch.stack([s + k / 4 for k in range(V)]) for s in (*case.state(), *case.state())]
    x = torch.randn(V, T, B, I, dtype=case.dtype)
    return [x, *states[:2], ALL_LENGTHS, ALL_MASKS, *states[2:]]


def flat(results):
    y, state, *more = results
    return (y, *state, *more)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "mapped", ["x", "x lengths", "x reset", "lengths", "reset", "h0 c0", "reset_h reset_c", "all"]
)
@pytest.mark.parametrize("cells", [False, True])
def test_members_are_calls_of_their_own(extension, mapped, shape, cells):
    case = CASE.with_(**SHAPES[shape])
    _, module = case.modules()
    names = ["x", "h0", "c0", "lengths", "reset", "reset_h", "reset_c"]
    chosen = names if mapped == "all" else mapped.split()
    dims = tuple(0 if name in chosen else None for name in names)

    def call(x, h0, c0, lengths, reset, *reset_hx):
        options = dict(lengths=lengths, reset=reset, reset_hx=reset_hx)
        return flat(module(x, (h0, c0), **options, return_cells=cells, return_gates=cells))

    args = arguments(case)
    given = [a if dim == 0 else a[1] for a, dim in zip(args, dims, strict=True)]
    with torch.no_grad(), Ops() as ops:
        found = vmap(call, dims)(*given)
    assert [name for name, _ in ops.calls] == ["lstm_sequence"] * case.layers
    for k in range(V):
        alone = [a[k] if dim == 0 else a for a, dim in zip(given, dims, strict=True)]
        torch.testing.assert_close([t[k] for t in found], [*call(*alone)])


@pytest.mark.parametrize("option", ["lengths", "cells", "recompute"])
def test_gradients_that_autograd_records_around_it(extension, option):
    _, module = CASE.with_(bidirectional=True).modules()
    module.recompute = 2 if option == "recompute" else 0
    options = dict(lengths=dict(lengths=LENGTHS), cells=dict(reset=MASK, return_cells=True))
    options = options.get(option, {})
    xs = torch.randn(V, T, B, I, dtype=torch.float64).requires_grad_()
    inputs = [xs, *module.parameters()]

    def call(x):
        return flat(module(x, **options))

    with Ops() as ops:
        together = torch.autograd.grad(sum(t.sin().sum() for t in vmap(call)(xs)), inputs)
    assert [name for name, _ in ops.calls] == ["lstm_sequence", "lstm_sequence_backward"]
    alone = sum(t.sin().sum() for x in xs for t in call(x))
    torch.testing.assert_close(together, torch.autograd.grad(alone, inputs))


def test_an_ensemble_runs_member_after_member(extension):
    modules = [fused_lstm.LSTM(I, H, dtype=torch.float64) for _ in range(V)]
    parameters, _ = stack_module_state(modules)
    x = torch.randn(T, B, I, dtype=torch.float64)

    def call(parameters, lengths):
        return flat(functional_call(modules[0], parameters, (x,), dict(lengths=lengths)))

    with torch.no_grad():
        found = vmap(call)(parameters, ALL_LENGTHS)
        for k, module in enumerate(modules):
            alone = flat(module(x, lengths=ALL_LENGTHS[k]))
            torch.testing.assert_close([t[k] for t in found], [*alone])


def test_one_in_the_other(extension):
    _, module = CASE.modules()
    xs = torch.randn(2, V, T, B, I, dtype=torch.float64)

    def call(x, lengths):
        return flat(module(x, lengths=lengths))

    with torch.no_grad(), Ops() as ops:
        found = vmap(vmap(call), (0, None))(xs, ALL_LENGTHS)
    assert [name for name, _ in ops.calls] == ["lstm_sequence"]
    for j in range(2):
        for k in range(V):
            alone = call(xs[j, k], ALL_LENGTHS[k])
            torch.testing.assert_close([t[j, k] for t in found], [*alone])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types(extension, dtype):
    module = fused_lstm.LSTM(I, H, dtype=dtype)
    xs = torch.randn(V, T, B, I).to(dtype)

    def call(x, lengths):
        return flat(module(x, lengths=lengths))

    with torch.no_grad():
        found = vmap(call)(xs, ALL_LENGTHS)
        for k in range(V):
            torch.testing.assert_close([t[k] for t in found], [*call(xs[k], ALL_LENGTHS[k])])


def test_members_of_a_packed_batch_share_their_lengths(extension):
    module = fused_lstm.LSTM(I, H)
    data, sizes = torch.randn(V, 6, I), torch.tensor([3, 2, 1])

    def call(data, sizes):
        packed = torch.nn.utils.rnn.PackedSequence(data, sizes)
        y, state, cells = module(packed, return_cells=True)
        return y.data, *state, cells.data

    with torch.no_grad():
        found = vmap(call, (0, None))(data, sizes)
        for k in range(V):
            torch.testing.assert_close([t[k] for t in found], [*call(data[k], sizes)])
        with pytest.raises(RuntimeError, match="share their lengths"):
            vmap(call)(data, torch.stack([sizes] * V))


def test_gradients_within_go_through_the_reference(extension):
    _, module = CASE.modules()
    (x,) = leaves([torch.randn(V, T, B, I, dtype=torch.float64)])
    with Ops() as ops:
        found = vmap(torch.func.grad(lambda x: module(x, lengths=LENGTHS)[0].sin().sum()))(x)
    assert ops.calls == []
    loss = sum(module(one, lengths=LENGTHS)[0].sin().sum() for one in x)
    torch.testing.assert_close(found, torch.autograd.grad(loss, x)[0])
