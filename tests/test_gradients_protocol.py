"""How backward behaves: graphs kept, tensors saved, modes, weights that are frozen or shared."""

import functools
import gc
import weakref

import pytest
import torch
from cases import Case
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import fused_lstm


@pytest.fixture
def setup(backend, device):
    """A layer, an input and a loss."""
    case = Case(layers=2, bidirectional=True, device=device)
    theirs, ours = case.modules()
    x = torch.randn(5, 3, 4, device=device, requires_grad=True)
    return theirs, ours, x


def loss_of(module, x):
    y, (h_n, c_n) = module(x)
    return y.sin().sum() + h_n.sum() + c_n.cos().sum()


def test_backward_twice_gives_the_same(setup):
    _, ours, x = setup
    inputs = [x, *ours.parameters()]
    loss = loss_of(ours, x)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_backward_without_retain_graph_cannot_run_twice(setup):
    _, ours, x = setup
    loss = loss_of(ours, x)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_backward_in_eval_mode(setup):
    theirs, ours, x = setup
    grads = [
        torch.autograd.grad(loss_of(m, x), [x, *m.parameters()])
        for m in (theirs.train(), ours.eval())
    ]
    torch.testing.assert_close(grads[1], grads[0])


def test_create_graph_gives_the_same_first_derivative(setup, backend):
    _, ours, x = setup
    inputs = [x, *ours.parameters()]
    plain = torch.autograd.grad(loss_of(ours, x), inputs)
    recorded = torch.autograd.grad(loss_of(ours, x), inputs, create_graph=True)
    exactly = dict(rtol=0, atol=0) if backend == "op" else {}
    torch.testing.assert_close(recorded, plain, **exactly)
    assert all(grad.requires_grad for grad in recorded)


def test_frozen_weights_get_no_gradient(setup):
    theirs, ours, x = setup
    frozen = ["weight_ih_l0", "bias_hh_l0_reverse", "weight_hh_l1", "bias_ih_l1"]
    for module in (theirs, ours):
        for name in frozen:
            getattr(module, name).requires_grad_(False)
        loss_of(module, x).backward()
    for (name, p), q in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert (q.grad is None) == (name in frozen)
        if name not in frozen:
            torch.testing.assert_close(q.grad, p.grad)


def test_all_weights_frozen(setup):
    _, ours, x = setup
    ours.requires_grad_(False)
    loss_of(ours, x).backward()
    assert x.grad is not None
    with torch.no_grad():
        assert not ours(x)[0].requires_grad


def test_nothing_to_differentiate_records_nothing(setup):
    _, ours, x = setup
    ours.requires_grad_(False)
    y, (h_n, c_n) = ours(x.detach())
    assert not any(t.requires_grad for t in (y, h_n, c_n))


@pytest.mark.parametrize("which", [0, 1])
def test_one_state_without_gradient(setup, which):
    theirs, ours, x = setup
    found = []
    for module in (theirs, ours):
        hx = [torch.full((4, 3, 6), 0.5, device=x.device) for _ in range(2)]
        hx[which].requires_grad_()
        y, (h_n, c_n) = module(x, tuple(hx))
        found.append(torch.autograd.grad(y.sum() + h_n.sum() + c_n.sum(), hx[which])[0])
    torch.testing.assert_close(found[1], found[0])


def test_saved_tensor_hooks_see_and_may_replace_every_saved_tensor(setup):
    _, ours, x = setup
    inputs = [x, *ours.parameters()]
    expected = torch.autograd.grad(loss_of(ours, x), inputs)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        loss = loss_of(ours, x)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("what", ["input", "weight", "h0"])
def test_changing_a_saved_tensor_in_place_is_noticed(setup, backend, what):
    _, ours, x = setup
    h0, c0 = (torch.zeros(4, 3, 6, device=x.device) for _ in range(2))
    x = x.detach().clone()
    y, (h_n, _) = ours(x, (h0, c0))
    loss = y.sum() + h_n.sum()
    changed = {"input": x, "weight": ours.weight_hh_l1, "h0": h0}[what]
    with torch.no_grad():
        changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_changing_the_output_in_place_is_noticed(extension, dtype):
    y, _ = fused_lstm.LSTM(4, 6, dtype=dtype)(torch.randn(5, 3, 4, dtype=dtype))
    loss = y.sum()
    y.detach().relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_output_without_a_gradient(setup):
    """A function may hand back None: then there is none of anything before it."""

    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    for module in setup[:2]:
        Stop.apply(module(setup[2])[0]).sum().backward()
        assert all(t.grad is None for t in (setup[2], *module.parameters()))


IN_PLACE = {
    "packed": dict(kind="packed"),
    "packed, all": dict(kind="packed", bidirectional=True, P=2, layers=2),
    "projection": dict(P=2, bias=False),
    "float64": dict(dtype=torch.float64),
    "two directions": dict(bidirectional=True),
    "two directions, layers": dict(bidirectional=True, layers=2),
}


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("twice", [False, True])
def test_an_output_may_be_changed_in_place_where_that_of_nn_lstm_may(backend, device, name, twice):
    case = Case(device=device, **IN_PLACE[name])
    sequences, found = case.sequences(), []
    for module in case.modules():
        y, (h_n, _) = module(case.pack(sequences))
        y = y.data if case.kind == "packed" else y
        if twice:
            y.mul_(2)[: len(y) // 2].zero_()
        else:
            y.relu_()
        h_n.mul_(2)
        (y.sin().sum() + h_n.sum()).backward()
        found.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(found[1], found[0])


def test_the_watch_on_an_output_keeps_no_memory(extension):
    """Once backward has run, nothing of a node holds on to the output that it watched."""
    y, (h_n, _) = fused_lstm.LSTM(4, 6, dtype=torch.float64)(torch.randn(5, 3, 4).double())
    y.sum().backward()
    weak = weakref.ref(y.untyped_storage())
    del y
    gc.collect()
    assert h_n.grad_fn is not None
    assert weak() is None


def checkpoint_takes(x):
    """Not a PackedSequence in torch 2.11."""
    try:
        checkpoint(lambda x: None, x, use_reentrant=False)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("name", ["float32", *IN_PLACE])
def test_a_policy_of_checkpointing_may_keep_the_layer(extension, name):
    """It keeps the op's outputs, and refuses those that have changed since."""
    case = Case(**IN_PLACE.get(name, {}))
    module, sequences = case.modules()[1], case.sequences()

    def outputs(x):
        y, (h_n, _) = module(x)
        return (y.data if case.kind == "packed" else y).sin().sum() + h_n.sum()

    keep = functools.partial(
        create_selective_checkpoint_contexts, [torch.ops.fused_lstm.lstm_layer.default]
    )
    found = []
    for kept in (False, True):
        module.zero_grad()
        x = case.pack(sequences)
        run, args = outputs, (x,)
        if not checkpoint_takes(x):
            run, args = functools.partial(outputs, x), ()
        if kept:
            checkpoint(run, *args, use_reentrant=False, context_fn=keep).backward()
        else:
            outputs(x).backward()
        found.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(found[1], found[0])


def test_an_in_place_update_of_the_weights_is_seen_by_the_next_call(setup):
    theirs, ours, x = setup
    for module in (theirs, ours):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(module, x).backward()
            optimizer.step()
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))


def test_tied_weights_add_their_gradients(setup):
    theirs, ours, x = setup
    for module in (theirs, ours):
        module.weight_hh_l0_reverse = module.weight_hh_l0
        module.bias_hh_l0 = module.bias_ih_l0
        loss_of(module, x).backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)
    torch.testing.assert_close(ours.bias_ih_l0.grad, theirs.bias_ih_l0.grad)


def test_tied_weights_have_second_derivatives(setup):
    theirs, ours, x = setup
    for module in (theirs, ours):
        module.double()
        module.weight_hh_l0_reverse = module.weight_hh_l0
        xs = x.detach().double().requires_grad_()
        (dx,) = torch.autograd.grad(loss_of(module, xs), xs, create_graph=True)
        dx.pow(2).sum().backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


def test_gradients_accumulate_over_calls(setup):
    """Truncated backpropagation: one module, several calls, one backward."""
    theirs, ours, x = setup
    for module in (theirs, ours):
        hx, loss = None, 0
        for part in x.detach().split([2, 1, 2]):
            y, hx = module(part, hx)
            loss = loss + y.sin().sum()
        loss.backward()
    for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


def test_expanded_and_strided_gradients(setup):
    """sum() hands back a gradient with stride 0, a transpose one with other strides."""
    theirs, ours, x = setup
    weight = torch.randn(12, 3, 5, device=x.device)
    for use in (
        lambda y: y.sum(),
        lambda y: (y.permute(2, 1, 0) * weight).sum(),
        lambda y: y[-1].sum(),
        lambda y: y[::2, :, 1].sum(),
    ):
        grads = [torch.autograd.grad(use(m(x)[0]), [x, *m.parameters()]) for m in (theirs, ours)]
        torch.testing.assert_close(grads[1], grads[0])


def test_anomaly_mode_and_checkpointing(setup):
    _, ours, x = setup
    plain = torch.autograd.grad(loss_of(ours, x), x)
    with torch.autograd.detect_anomaly(check_nan=True):
        checked = torch.autograd.grad(loss_of(ours, x), x)
    loss = torch.utils.checkpoint.checkpoint(lambda t: loss_of(ours, t), x, use_reentrant=False)
    torch.testing.assert_close(checked, plain, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, x), plain, rtol=0, atol=0)


def test_saved_tensors_on_the_host(setup):
    _, ours, x = setup
    inputs = [x, *ours.parameters()]
    expected = torch.autograd.grad(loss_of(ours, x), inputs)
    with torch.autograd.graph.save_on_cpu():
        loss = loss_of(ours, x)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_of_packed_input(backend, use_reentrant):
    case = Case(kind="packed", layers=2, bidirectional=True, P=2)
    _, ours = case.modules()
    packed = case.pack(case.sequences())
    data = packed.data.requires_grad_()

    def outputs(data):
        y, (h_n, _) = ours(packed._replace(data=data))
        return y.data.relu_().sum() + h_n.sum()

    found = []
    for loss in (
        outputs(data),
        torch.utils.checkpoint.checkpoint(outputs, data, use_reentrant=use_reentrant),
    ):
        ours.zero_grad()
        data.grad = None
        loss.backward()
        found.append([data.grad, *(p.grad.clone() for p in ours.parameters())])
    torch.testing.assert_close(found[1], found[0])


def test_training_reaches_the_loss_that_nn_lstm_reaches(backend, device):
    """Sixty steps of a small task end at the same loss."""
    case = Case(I=2, H=16, device=device)
    losses = []
    for module in case.modules():
        torch.manual_seed(5)
        head = nn.Linear(16, 1, device=device)
        optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], lr=1e-2)
        data = torch.randn(8, 32, 2, generator=torch.Generator().manual_seed(6)).to(device)
        target = data[..., 0].cumsum(0).sign()
        for _ in range(60):
            loss = nn.functional.mse_loss(head(module(data)[0])[..., 0], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] < 0.5
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
