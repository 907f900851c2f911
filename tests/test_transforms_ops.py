"""What runs under a transform: one fused call where one is enough, and refusals where none fits."""

from __future__ import annotations

import pytest
import torch
from test_transforms import B, H, I, Problem, T, leaves, loss_of
from torch import Tensor
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import fused_lstm

X_IN_BACKWARD = {"lstm_sequence_backward": 4}


class Ops(TorchDispatchMode):
    """The fused ops that run, with the shape of x."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fused_lstm":
            name = func.name().removeprefix("fused_lstm::")
            x = args[X_IN_BACKWARD.get(name, 3) if "backward" in name else 0]
            self.calls.append((name, tuple(x.shape)))
        return func(*args, **(kwargs or {}))


def test_mapped_inputs_are_one_fused_call(extension):
    problem = Problem()
    x, *rest = problem.arguments()
    with Ops() as ops:
        vmap(lambda x: problem.ours(x, *rest))(torch.stack([x] * 7))
    assert ops.calls == [("lstm", (T, B, 7, I))]  # where the members lie


def rows_of_members(x):
    """Members [T, B, V, I] of rows that lie V apart, as a vmap over the first dimension has them,
    and the same rows side by side.
    """
    return x.movedim(0, -2), x.movedim(0, -2).flatten(1, 2)


MEMBER_PLANS = ["", "fold=0 chunk=2", "fold=1", "algorithm=dot", "rows=2 fold=1", "units=2"]


@pytest.mark.core
@pytest.mark.parametrize("plan", MEMBER_PLANS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_members_are_read_where_they_lie_bit_for_bit(extension, plan, dtype):
    """In any order of dimensions, expanded ones and features apart among them."""
    ops, members, hidden = torch.ops.fused_lstm, 3, 67  # more than one panel
    weights = [
        p.detach() for p in fused_lstm.LSTM(5, hidden, dtype=dtype, bidirectional=True).parameters()
    ]
    contiguous = torch.randn(members, 4, 2, 5, dtype=dtype)
    expanded = torch.randn(1, 4, 2, 5, dtype=dtype).expand(members, -1, -1, -1)
    apart = torch.randn(members, 4, 2, 10, dtype=dtype)[..., ::2]
    one_row = torch.randn(members, 4, 1, 5, dtype=dtype)
    batch_first = torch.randn(2, members, 4, 5, dtype=dtype).permute(1, 2, 0, 3)
    for given in (contiguous, expanded, apart, one_row, batch_first):
        extension.request_cpu_plan(plan)
        try:
            found = [both_passes(ops, x, weights) for x in rows_of_members(given)]
        finally:
            extension.request_cpu_plan("")
        assert found[0][5].shape == (4, given.shape[2], members, 5)
        found[0][5] = found[0][5].flatten(1, 2)
        for actual, expected in zip(*found, strict=True):
            assert torch.equal(actual, expected)


def both_passes(ops, x, weights):
    """Outputs, what is saved, and gradients of the input and every weight."""
    reverse = [False, True]
    y, h_n, c_n, gates, c = ops.lstm_layer(x, None, None, None, weights, reverse, True)
    needs = [True, False, False, *[True] * len(weights)]
    grads = ops.lstm_layer_backward(
        y.cos(), None, None, x, None, None, None, weights, reverse, y, gates, c, needs
    )
    return [y, h_n, c_n, gates, c, *(g for g, need in zip(grads, needs, strict=True) if need)]


def test_members_where_they_lie_are_for_the_layer_alone(extension):
    problem = Problem()
    x, _, _, *weights = (t.requires_grad_() for t in problem.arguments(2))
    arguments = (None, None, None, [w[0] for w in weights], [False])
    for op, flags in (("lstm_layer", (True,)), ("lstm", ())):
        run = getattr(torch.ops.fused_lstm, op)
        found, expected = run(x, *arguments, *flags), run(x.flatten(1, 2), *arguments, *flags)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        dx = [
            torch.autograd.grad(y.sin().sum() + c_n.sum(), x)[0]
            for y, _, c_n, *_ in (found, expected)
        ]
        torch.testing.assert_close(*dx, rtol=0, atol=0)
    none = (None, None, None, None, False, 0, False)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"expected x of shape \[T, B, I\]"):
        torch.ops.fused_lstm.lstm_sequence(x, *arguments, *none)
    with torch.no_grad():
        for op in ("lstm_layer", "lstm"):
            flags = (False,) if op == "lstm_layer" else ()
            torch.library.opcheck(
                getattr(torch.ops.fused_lstm, op).default, (x, *arguments, *flags)
            )


@pytest.mark.parametrize("variant", ["inference", "gradients"])
def test_members_of_an_input_are_not_copied(extension, variant):
    """A vmap of 16 MB of input makes no tensor of that size."""
    module = fused_lstm.LSTM(64, 1)
    x, found = torch.randn(8, 64, 128, 64), []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.numel() == x.numel() and not func.is_view:
                found.append(func.name())
            return out

    with Copies(), torch.no_grad():
        if variant == "inference":
            vmap(lambda x: module(x)[0])(x)
        else:
            vmap(grad(lambda x: module(x)[0].sum()))(x)
    assert found == []


def test_per_sample_gradients_are_one_forward_and_one_backward(extension):
    problem = Problem()
    x, *rest = problem.arguments()
    with Ops() as ops:
        vmap(lambda x: grad(lambda w: loss_of(problem.ours)(x, *rest[:2], w, *rest[3:]))(rest[2]))(
            torch.stack([x] * 7)
        )
    assert ops.calls == [
        ("lstm_layer", (T, B, 7, I)),
        ("_lstm_layer_backward_gates", (T, 7 * B, I)),
        ("_member_products", (T * 7 * B, 4 * H)),
    ]


def test_an_ensemble_is_one_forward_and_one_backward(extension):
    problem = Problem()
    x, h0, c0, *weights = problem.arguments()
    stacked = [torch.stack([w] * 7) for w in weights]
    with Ops() as ops:
        vmap(grad(lambda *w: loss_of(problem.ours)(x, h0, c0, *w)))(*stacked)
    assert ops.calls == [
        ("_lstm_ensemble", (7, T, B, I)),
        ("_lstm_ensemble_backward", (7, T, B, I)),
    ]


@pytest.mark.parametrize("save", [False, True])
def test_plain_backward_of_an_ensemble_is_one_forward_and_one_backward(extension, save):
    """loss.backward() through vmap, also where it maps the op that saves for another derivative."""
    problem = Problem()
    x, h0, c0, *weights = problem.arguments()
    stacked = leaves([torch.stack([w] * 7) for w in weights])

    def call(*w):
        if save:
            return torch.ops.fused_lstm.lstm_layer(x, None, h0, c0, w, [False], True)[:3]
        return problem.ours(x, h0, c0, *w)

    with Ops() as ops:
        sum(t.sum() for t in vmap(call)(*stacked)).backward()
    assert ops.calls == [
        ("_lstm_ensemble", (7, T, B, I)),
        ("_lstm_ensemble_backward", (7, T, B, I)),
    ]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("steps", [0, T])
def test_an_ensemble_is_its_members_bit_for_bit(extension, count, dtype, steps):
    """However many threads they share: members have the sums of a call of their own."""
    module = fused_lstm.LSTM(I, H, bidirectional=True, dtype=dtype)
    weights = [torch.randn(count, *p.shape, dtype=dtype) for p in module.parameters()]
    sizes = torch.tensor([2, 2, 1][:steps], dtype=torch.int64)
    x = torch.randn(count, int(sizes.sum()), I, dtype=dtype)
    h0, c0 = torch.randn(2, count, 2, 2 if steps else 0, H, dtype=dtype)
    ops = torch.ops.fused_lstm
    reverse = [False, True]
    together = ops._lstm_ensemble(x, sizes, h0, c0, weights, reverse, True)
    y, h_n, c_n, gates, c = together
    grads = [torch.randn_like(t) for t in (y, h_n, c_n)]
    needs = [True] * (3 + len(weights))
    arguments = (x, sizes, h0, c0, weights, reverse, y, gates, c, needs)
    back = ops._lstm_ensemble_backward(*grads, *arguments)
    for k in range(count):
        own = (x[k], sizes, h0[k], c0[k], [w[k] for w in weights], reverse)
        alone = ops.lstm_layer(*own, True)
        assert all(torch.equal(t[k], one) for t, one in zip(together, alone, strict=True))
        saved = (alone[0], *alone[3:], needs)
        alone = ops.lstm_layer_backward(*[t[k] for t in grads], *own, *saved)
        assert all(torch.equal(t[k], one) for t, one in zip(back, alone, strict=True))


def test_shapes_without_values_of_an_ensemble(extension):
    """What tracing asks of the ops that the rules for vmap call."""
    problem = Problem(packed=True, D=2, P=2)
    x, h0, c0, *weights = (torch.stack([t, t]) for t in problem.arguments())
    forward = (x, problem.batch_sizes, h0, c0, weights, [False, True])
    y, _, c_n, gates, c = torch.ops.fused_lstm._lstm_ensemble(*forward, True)
    needs = [True, False, True, *[True, False] * (len(weights) // 2)]
    backward = (y, None, c_n, *forward, y, gates, c, needs)
    one = [t[0] if isinstance(t, Tensor) and t is not problem.batch_sizes else t for t in backward]
    one[7] = [w[0] for w in weights]
    for op, args in (
        ("_lstm_ensemble", (*forward, True)),
        ("_lstm_ensemble", (*forward, False)),
        ("_lstm_ensemble_backward", backward),
        ("_lstm_layer_backward_gates", tuple(one)),
    ):
        torch.library.opcheck(getattr(torch.ops.fused_lstm, op).default, args)


def test_an_ensemble_refuses_what_does_not_fit(extension):
    problem = Problem()
    x, h0, c0, *weights = (torch.stack([t, t]) for t in problem.arguments())
    op = torch.ops.fused_lstm._lstm_ensemble
    with pytest.raises(RuntimeError, match="expected h0 of 2 members"):
        op(x, None, h0[:1], c0, weights, [False], False)
    with pytest.raises(RuntimeError, match="expected w_hh of shape"):
        op(x, None, h0, c0, [weights[0], weights[0], *weights[2:]], [False], False)


def test_members_of_a_packed_batch_share_their_lengths(extension):
    problem = Problem(packed=True)
    x, h0, c0, *weights = problem.arguments()
    sizes = torch.stack([problem.batch_sizes] * 2)
    with pytest.raises(RuntimeError, match=r"must share their lengths; .* lengths=\.\.\."):
        vmap(lambda s: torch.ops.fused_lstm.lstm(x, s, h0, c0, weights, [0])[0])(sizes)


def test_an_ensemble_of_modules_trains_as_its_members_do(backend):
    """As PyTorch's tutorial on model ensembling does it, forward and loss.backward()."""
    modules = [
        fused_lstm.LSTM(I, H, 2, bidirectional=True, proj_size=2, dtype=torch.float64)
        for _ in range(3)
    ]
    x = torch.randn(T, B, I, dtype=torch.float64)
    weights, buffers = stack_module_state(modules)
    y, (h_n, c_n) = vmap(lambda *state: functional_call(modules[0], state, (x,)))(weights, buffers)
    sum(t.sin().sum() for t in (y, h_n, c_n)).backward()
    for k, module in enumerate(modules):
        y, (h_n, c_n) = module(x)
        sum(t.sin().sum() for t in (y, h_n, c_n)).backward()
        for name, p in module.named_parameters():
            torch.testing.assert_close(weights[name].grad[k], p.grad)


def test_a_vmap_over_nothing(extension):
    with pytest.raises(RuntimeError, match="expected at least one member"):
        vmap(fused_lstm.LSTM(I, H))(torch.randn(0, T, B, I))


@pytest.mark.parametrize("op", ["lstm", "lstm_layer"])
def test_an_op_called_by_itself_drops_no_derivative(extension, op):
    problem = Problem()
    x, h0, c0, *weights = problem.arguments()
    rest = (False,) if op == "lstm_layer" else ()
    call = lambda x: getattr(torch.ops.fused_lstm, op)(x, None, h0, c0, weights, [0], *rest)[0]  # noqa: E731
    expected = lambda x: problem.exact(x, h0, c0, *weights)[0]  # noqa: E731
    torch.testing.assert_close(jvp(call, (x,), (x.cos(),)), jvp(expected, (x,), (x.cos(),)))
    torch.testing.assert_close(
        grad(lambda x: call(x).sin().sum())(x), grad(lambda x: expected(x).sin().sum())(x)
    )
    found, wanted = (
        torch.autograd.grad(f(t).sin().sum(), t)[0]
        for f in (call, expected)
        for t in [x.clone().requires_grad_()]
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("shape", [(3, 4), (4,)])
def test_cells(backend, shape):
    """LSTMCell under the transforms, against nn.LSTMCell's equations in a loop."""
    cell = fused_lstm.LSTMCell(4, 6, dtype=torch.float64)
    theirs = torch.nn.LSTMCell(4, 6, dtype=torch.float64)
    theirs.load_state_dict(cell.state_dict())
    x = torch.randn(5, *shape, dtype=torch.float64)
    torch.testing.assert_close(vmap(cell)(x)[0], torch.stack([theirs(one)[0] for one in x]))

    def loss(module):
        return lambda x: sum(t.sin().sum() for t in module(x))

    torch.testing.assert_close(
        vmap(grad(loss(cell)))(x), torch.stack([grad(loss(theirs))(one) for one in x])
    )
    tangents = torch.stack([jvp(theirs, (one,), (one.cos(),))[1][0] for one in x])
    torch.testing.assert_close(
        torch.stack([jvp(cell, (one,), (one.cos(),))[1][0] for one in x]), tangents
    )


def test_a_tensor_that_outlived_its_transform(backend):
    """It still wears the transform's wrapper, and is the value inside."""
    layer, left = fused_lstm.LSTM(I, H), []

    def keep(x):
        left.append(x)
        return x.sum()

    x, upstream = torch.randn(T, B, I), torch.randn(T, B, H)
    grad(keep)(x)
    grad(keep)(upstream)
    parameters = list(layer.parameters())
    y, y_of_left = layer(x)[0], layer(left[0])[0]
    torch.testing.assert_close(y_of_left, y, rtol=0, atol=0)
    expected = torch.autograd.grad(y, parameters, upstream)
    torch.testing.assert_close(torch.autograd.grad(y_of_left, parameters, left[1]), expected)
