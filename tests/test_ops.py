"""The ops themselves: registered properly, saving what they say, computing what is asked."""

import itertools

import pytest
import torch
from cases import DTYPE_IDS, DTYPES
from torch.nn.utils.rnn import pack_sequence

from fused_lstm import _ops, reference

T, B, I, H = 4, 3, 5, 6  # noqa: E741


def arguments(kind="dense", D=1, P=0, bias=True, state=True, dtype=torch.float32, device="cpu"):
    """x, batch_sizes, h0, c0, weights, reverse: what both ops begin with."""
    options = dict(dtype=dtype, device=device)
    x, batch_sizes = torch.randn(T, B, I, **options), None
    if kind == "packed":
        packed = pack_sequence([torch.randn(n, I, **options) for n in (4, 2, 1)])
        x, batch_sizes = packed.data, packed.batch_sizes
    weights = []
    for _ in range(D):
        weights += [torch.randn(4 * H, I, **options), torch.randn(4 * H, P or H, **options)]
        weights += [torch.randn(4 * H, **options) for _ in range(2 * bias)]
        weights += [torch.randn(P, H, **options)] if P else []
    h0 = torch.randn(D, B, P or H, **options) if state else None
    c0 = torch.randn(D, B, H, **options) if state else None
    return x, batch_sizes, h0, c0, weights, [False, True][:D]


VARIANTS = {
    "dense": {},
    "packed": dict(kind="packed"),
    "bidirectional": dict(D=2),
    "projection": dict(P=2),
    "no_bias": dict(bias=False),
    "no_state": dict(state=False),
    "all": dict(kind="packed", D=2, P=2),
}


def backward_arguments(forward, needs=None):
    _, _, h0, c0, weights, _ = forward
    y, h_n, c_n, gates, c = _ops.lstm_layer(*forward, True)
    if needs is None:
        needs = [True, h0 is not None, c0 is not None] + [True] * len(weights)
    grads = [torch.randn_like(t) for t in (y, h_n, c_n)]
    return (*grads, *forward, y, gates, c, needs)


@pytest.mark.core
@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_opcheck_forward(extension, device, name, save):
    args = (*arguments(device=device, **VARIANTS[name]), save)
    torch.library.opcheck(_ops.lstm_layer, args)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_what_is_not_saved_is_nothing_of_its_dtype(extension, device, dtype):
    """Two tensors, as of a call without a derivative and of the fake kernel."""
    x, *others, weights, reverse = arguments(dtype=dtype, device=device)
    for recorded in (False, True):
        found = _ops.lstm_layer(x.requires_grad_(recorded), *others, weights, reverse, False)
        gates, c = found[3:]
        assert gates.shape == c.shape == (0,)
        assert gates is not c
        assert gates.dtype == dtype
        assert c.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.core
@pytest.mark.parametrize("name", VARIANTS)
def test_opcheck_backward(extension, device, name):
    forward = arguments(device=device, **VARIANTS[name])
    torch.library.opcheck(_ops.lstm_layer_backward, backward_arguments(forward))


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_saved_tensors(extension, device, name, dtype):
    """Shapes and dtypes of what is saved; the gates and c_t are those of the equations."""
    forward = arguments(device=device, dtype=dtype, **VARIANTS[name])
    x, batch_sizes, _, _, weights, reverse = forward
    y, _, _, gates, c = _ops.lstm_layer(*forward, True)
    rows = len(x) if batch_sizes is not None else T * B
    state = torch.float64 if dtype == torch.float64 else torch.float32
    assert (gates.shape, gates.dtype) == ((len(reverse), rows, 4 * H), dtype)
    assert (c.shape, c.dtype) == ((len(reverse), rows, H), state)
    i, f, g, o = gates.float().chunk(4, 2)
    assert all((gate >= 0).all() and (gate <= 1).all() for gate in (i, f, o))
    assert (g.abs() <= 1).all()
    if len(weights) // len(reverse) in (2, 4):  # without a projection, h_t = o tanh(c_t)
        h = (o * c.float().tanh()).to(dtype)
        ours = torch.stack(y.reshape(rows, len(reverse), -1).unbind(1))
        low = torch.finfo(dtype).bits == 16
        torch.testing.assert_close(
            ours.float(), h.float(), rtol=2e-2 if low else 1e-5, atol=1e-2 if low else 1e-5
        )
    nothing = _ops.lstm_layer(*forward, False)[3:]
    assert [t.shape for t in nothing] == [(0,), (0,)]


@pytest.mark.core
@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_forward_is_the_reference(extension, device, name, save):
    forward = arguments(device=device, dtype=torch.float64, **VARIANTS[name])
    found = _ops.lstm_layer(*forward, save)[:3]
    torch.testing.assert_close(tuple(found), reference.lstm_layer(*forward))


@pytest.mark.core
def test_a_single_direction_may_walk_backwards(extension, device):
    """Layers of alternating direction, without a flip."""
    x, _, h0, c0, weights, _ = arguments(device=device, dtype=torch.float64)
    y, h_n, c_n = _ops.lstm_layer(x, None, h0, c0, weights, [True], False)[:3]
    flipped = _ops.lstm_layer(x.flip(0), None, h0, c0, weights, [False], False)[:3]
    torch.testing.assert_close((y.flip(0), h_n, c_n), tuple(flipped))


@pytest.mark.core
@pytest.mark.parametrize("given", list(itertools.product([False, True], repeat=3))[1:])
@pytest.mark.parametrize("name", ["dense", "packed", "all"])
def test_missing_gradients_count_as_zero(extension, device, name, given):
    forward = arguments(device=device, dtype=torch.float64, **VARIANTS[name])
    args = backward_arguments(forward)
    grads = args[:3]
    some = [grad if is_given else None for grad, is_given in zip(grads, given, strict=True)]
    zeros = [
        grad if is_given else torch.zeros_like(grad)
        for grad, is_given in zip(grads, given, strict=True)
    ]
    found = _ops.lstm_layer_backward(*some, *args[3:])
    torch.testing.assert_close(found, _ops.lstm_layer_backward(*zeros, *args[3:]))


@pytest.mark.core
@pytest.mark.parametrize("name", ["dense", "all", "no_bias", "no_state"])
def test_only_what_is_needed_comes_back(extension, device, name):
    forward = arguments(device=device, dtype=torch.float64, **VARIANTS[name])
    args = backward_arguments(forward)
    everything = _ops.lstm_layer_backward(*args)
    possible = args[-1]
    for k in range(len(possible)):
        needs = [possible[j] and j == k for j in range(len(possible))]
        found = _ops.lstm_layer_backward(*args[:-1], needs)
        for j, grad in enumerate(found):
            if needs[j]:
                torch.testing.assert_close(grad, everything[j])
            else:
                assert grad.shape == (0,)
                assert grad.dtype == torch.float64


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_look_like_what_they_belong_to(extension, device, name, dtype):
    forward = arguments(device=device, dtype=dtype, **VARIANTS[name])
    found = _ops.lstm_layer_backward(*backward_arguments(forward))
    x, _, h0, c0, weights, _ = forward
    for grad, tensor in zip(found, (x, h0, c0, *weights), strict=True):
        if tensor is not None:
            assert (grad.shape, grad.dtype, grad.device) == (
                tensor.shape,
                tensor.dtype,
                tensor.device,
            )


@pytest.mark.core
def test_backward_writes_to_nothing_it_was_given(extension, device):
    forward = arguments(device=device, **VARIANTS["all"])
    args = backward_arguments(forward)
    tensors = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor)]
    copies = [t.clone() for t in tensors]
    _ops.lstm_layer_backward(*args)
    torch.testing.assert_close(tensors, copies, rtol=0, atol=0)


@pytest.mark.core
@pytest.mark.parametrize(
    "change",
    [
        lambda a: (a[0].double(), *a[1:]),
        lambda a: (a[0][..., :3], *a[1:]),
        lambda a: (a[0][0], *a[1:]),
        lambda a: (a[0], None, a[2][:, :2], *a[3:]),
        lambda a: (a[0], None, a[2], a[3][..., :2], *a[4:]),
        lambda a: (*a[:4], a[4][:1], a[5]),
        lambda a: (*a[:4], [a[4][0], a[4][1][:, :3], *a[4][2:]], a[5]),
        lambda a: (*a[:4], [a[4][0].double(), *a[4][1:]], a[5]),
        lambda a: (*a[:4], [*a[4][:3], a[4][3][:5]], a[5]),
        lambda a: (*a[:5], []),
        lambda a: (*a[:5], [False, True]),
        lambda a: (a[0], torch.tensor([3, 3, 3, 3]), *a[2:]),
        lambda a: (a[0].flatten(0, 1), torch.tensor([3, 3, 3]), *a[2:]),
        lambda a: (a[0].flatten(0, 1), torch.tensor([2, 3, 3, 4]), *a[2:]),
        lambda a: (a[0].flatten(0, 1), torch.tensor([3, 3, 3, 3], dtype=torch.int32), *a[2:]),
    ],
)
def test_arguments_that_do_not_fit_are_refused(extension, device, change):
    """The op checks for itself: it must not read outside a tensor, whoever calls it."""
    with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
        _ops.lstm_layer(*change(arguments(device=device)), False)
    assert len(str(caught.value)) > 10


@pytest.mark.parametrize("size", [1, 20])  # of a bias: one would be broadcast
@pytest.mark.parametrize("which", range(10))
def test_weights_that_do_not_fit_are_refused_by_the_reference(which, size):
    """Those of either direction, where no op looks at them first."""
    x = torch.randn(4, 3, 5)
    one = [torch.randn(shape) for shape in ((24, 5), (24, 2), (24,), (24,), (2, 6))]
    weights = one + one
    reference.lstm_layer(x, None, None, None, weights, [False, True])
    weights[which] = weights[which][:size] if which % 5 in (2, 3) else weights[which][:, :1]
    with pytest.raises(RuntimeError, match=r"fused_lstm: expected ._.. of shape"):
        reference.lstm_layer(x, None, None, None, weights, [False, True])


FORWARD = ["x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh"]
SAVED = ["grad_y", "grad_h_n", "grad_c_n", "y", "gates", "c"]


@pytest.mark.core
@pytest.mark.parametrize("name", FORWARD + SAVED)
@pytest.mark.parametrize("lost", ["all", "one element"])
def test_tensors_without_their_memory_are_refused(extension, name, lost):
    """Freed under a tensor, as by FSDP: to read it would end the process."""
    x, batch_sizes, h0, c0, weights, reverse = arguments()
    forward = (x, batch_sizes, h0, c0, weights, reverse)
    y, h_n, c_n, gates, c = torch.ops.fused_lstm.lstm_layer(*forward, True)
    grads = [torch.ones_like(t) for t in (y, h_n, c_n)]
    tensors = (x, h0, c0, *weights, *grads, y, gates, c)
    tensor = dict(zip(FORWARD + SAVED, tensors, strict=True))[name]
    storage = tensor.untyped_storage()
    storage.resize_(0 if lost == "all" else storage.nbytes() - tensor.element_size())
    op, args = torch.ops.fused_lstm.lstm_layer, (*forward, False)
    if name in SAVED:
        op = torch.ops.fused_lstm.lstm_layer_backward
        args = (*grads, *forward, y, gates, c, [True] * (3 + len(weights)))
    with pytest.raises(RuntimeError, match=f"expected {name} with its memory"):
        op(*args)
