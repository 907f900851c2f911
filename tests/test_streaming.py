"""step() and stream(): a sequence in pieces is the sequence."""

import threading
import time

import pytest
import torch
from cases import DTYPE_IDS, DTYPES, Case
from torch import nn

import fused_lstm

CASE = Case(T=9, B=3, I=5, H=20)


def close(a, b):
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5}.get(a.dtype, 3e-2)
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("P", [0, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_pieces_are_the_whole(dtype, P, layers):
    case = CASE.with_(dtype=dtype, P=P, layers=layers)
    _, module = case.modules()
    x, hx = torch.randn(9, 3, 5).to(dtype), case.state()
    y, state = module(x, hx)
    stream = module.stream(batch=3)
    stream.state = hx
    pieces = [stream(x[0]).unsqueeze(0), stream(x[1]).unsqueeze(0), stream(x[2:6]), stream(x[6:])]
    found = torch.cat(pieces)
    assert found.dtype == dtype
    assert not found.requires_grad
    close(found, y.detach())
    for a, b in zip(stream.state, state, strict=True):
        assert a.dtype == dtype
        close(a, b.detach())


@pytest.mark.parametrize("batch", [1, 2, 16, 64])
@pytest.mark.parametrize("H", [3, 16, 65])
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_and_sizes(batch, H, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _, module = CASE.with_(H=H, layers=2, bias=H > 3).modules()
        x = torch.randn(6, batch, 5)
        stream = module.stream(batch)
        close(torch.stack([stream(step) for step in x]), module(x)[0].detach())
    finally:
        torch.set_num_threads(before)


def test_steps_carry_gradients():
    _, module = CASE.with_(layers=2, dtype=torch.float64).modules()
    x = torch.randn(4, 3, 5).double().requires_grad_()
    state, ys = None, []
    for step in x:
        y, state = module.step(step, state)
        ys.append(y)
    wanted, (h_n, c_n) = module(x)
    torch.testing.assert_close(torch.stack(ys), wanted)
    torch.testing.assert_close(state, (h_n, c_n))
    grads = [
        torch.autograd.grad(t.sin().sum(), [x, *module.parameters()])
        for t in (torch.stack(ys), wanted)
    ]
    torch.testing.assert_close(*grads)


def test_step_of_a_batch_first_layer():
    _, module = CASE.with_(batch_first=True).modules()
    x = torch.randn(3, 5)
    assert torch.equal(module.step(x)[0], module(x.unsqueeze(1))[0].squeeze(1))


@pytest.mark.parametrize("change", ["in place", "data", "replaced", "loaded"])
def test_changed_weights_are_packed_again(change):
    _, module = CASE.with_(layers=2).modules()
    stream, x = module.stream(3), torch.randn(3, 5)
    stream(x)
    assert not stream.outdated
    with torch.no_grad():
        if change == "in place":
            module.weight_hh_l1.mul_(0.5)
        elif change == "data":
            module.weight_ih_l0.data = torch.randn(80, 5)
        elif change == "replaced":
            module.bias_hh_l1 = torch.nn.Parameter(torch.randn(80))
        else:
            module.load_state_dict(CASE.with_(layers=2).modules()[0].state_dict())
    assert stream.outdated
    state = stream.state
    close(stream(x), module(x.unsqueeze(0), state)[0][0].detach())
    assert not stream.outdated


def test_training_between_calls():
    _, module = CASE.modules()
    stream, x = module.stream(3), torch.randn(3, 5)
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        module(torch.randn(4, 3, 5))[0].sum().backward()
        optimiser.step()
        state = stream.state
        close(stream(x), module(x.unsqueeze(0), state)[0][0].detach())


def test_reset_of_rows():
    _, module = CASE.with_(layers=2).modules()
    stream = module.stream(3)
    stream(torch.randn(3, 5))
    before = stream.state
    stream.reset([1])
    for now, then in zip(stream.state, before, strict=True):
        assert not now[:, 1].any()
        assert torch.equal(now[:, [0, 2]], then[:, [0, 2]])
    stream.reset(
        torch.tensor([True, False, False]), to=(torch.ones(2, 1, 20), torch.ones(2, 1, 20))
    )
    assert (stream.state[0][:, 0] == 1).all()
    stream.reset()
    assert not any(s.any() for s in stream.state)


def test_results_are_kept():
    """An output is the caller's: the next call does not write into it."""
    _, module = CASE.modules()
    stream = module.stream(3)
    first = stream(torch.randn(3, 5))
    copy = first.clone()
    stream(torch.randn(3, 5))
    assert torch.equal(first, copy)


def test_refusals():
    both = fused_lstm.LSTM(5, 4, bidirectional=True)
    with pytest.raises(ValueError, match=r"stream\(\) goes forward in time only"):
        both.stream()
    with pytest.raises(ValueError, match=r"step\(\) goes forward in time only"):
        both.step(torch.randn(3, 5))
    module = fused_lstm.LSTM(5, 4)
    with pytest.raises(RuntimeError, match=r"step\(\) takes input \[B, I\], got 3-D"):
        module.step(torch.randn(1, 3, 5))
    with pytest.raises(ValueError, match="batch of at least 1"):
        module.stream(0)
    stream = module.stream(3)
    for x in (torch.randn(2, 5), torch.randn(5), torch.randn(3, 6), torch.randn(4, 2, 5)):
        with pytest.raises(RuntimeError, match=r"expected x of shape \[3, 5\], or \[T, 3, 5\]"):
            stream(x)
    with pytest.raises(RuntimeError, match=r"expected x of torch\.float32"):
        stream(torch.randn(3, 5).double())
    with pytest.raises(RuntimeError, match="records no gradients"):
        stream(torch.randn(3, 5, requires_grad=True))
    with pytest.raises(ValueError, match=r"expected states of shape \[1, 3, 4\]"):
        stream.state = (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))


def test_no_tangent_is_dropped(backend):
    """A stream refuses what it would compute without its derivative."""
    x = torch.randn(3, 5)
    stream = fused_lstm.LSTM(5, 4).stream(3)
    for call in (
        lambda: torch.func.jvp(stream, (x,), (x,)),
        lambda: torch.func.vmap(stream)(torch.stack([x, x])),
        lambda: dual(stream, x),
    ):
        with pytest.raises(RuntimeError, match="takes part in no transform"):
            call()


def dual(f, x):
    with torch.autograd.forward_ad.dual_level():
        return f(torch.autograd.forward_ad.make_dual(x, x))


def test_non_contiguous_input_and_no_steps():
    _, module = CASE.modules()
    stream = module.stream(3)
    x = torch.randn(5, 4, 3).permute(1, 2, 0)
    close(stream(x), module(x)[0].detach())
    assert stream(torch.empty(0, 3, 5)).shape == (0, 3, 20)


class Scaled(nn.Module):
    def forward(self, weight):
        return 0.5 * weight


WITHOUT_KERNELS = {
    "fallback": lambda module: module,
    "fallback, compiled": lambda module: module.compile(backend="eager") or module,
    "parametrized": lambda module: (
        nn.utils.parametrize.register_parametrization(module, "weight_hh_l0", Scaled()) and module
    ),
    "weight norm": lambda module: nn.utils.weight_norm(module, "weight_hh_l0"),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("name", WITHOUT_KERNELS)
def test_no_dropout_where_the_layer_itself_runs(request, name):
    """Also in training mode, which the layer keeps; and what computes its weights still runs."""
    if "fallback" in name:
        request.getfixturevalue("fallback")
    _, module = CASE.with_(layers=3, dropout=0.5).modules()
    module = WITHOUT_KERNELS[name](module).train()
    stream, x = module.stream(3), torch.randn(4, 3, 5)
    for _ in range(2):
        module.eval()
        expected, _ = module(x, stream.state)
        module.train()
        close(stream(x), expected.detach())
        assert module.training
        with torch.no_grad():  # the next round finds other weights
            next(module.parameters()).mul_(1.5)
            for p in module.parameters():
                p.mul_(0.9)


@pytest.mark.parametrize("kind", ["kernels", "fallback"])
def test_calls_of_several_threads_take_turns(request, kind):
    """No step is lost: each goes on from the state that another left."""
    if kind == "fallback":
        request.getfixturevalue("fallback")
    _, module = CASE.modules()
    x, stream = torch.randn(3, 5), module.stream(3)
    _, expected = module(x.expand(8, 3, 5))
    wait = module.register_forward_pre_hook(lambda *_: time.sleep(0.002))
    threads = [threading.Thread(target=lambda: [stream(x) for _ in range(2)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait.remove()
    for a, b in zip(stream.state, expected, strict=True):
        close(a, b.detach())


def test_threads_that_find_other_weights_pack_them_once(backend, monkeypatch):
    """The second would begin with a state that lacks the step of the first."""
    _, module = CASE.modules()
    x, stream = torch.randn(3, 5).double(), module.stream(3)
    module.double()
    _, expected = module(x.expand(4, 3, 5))
    begin, begun = stream._begin, []

    def slowly(state):
        begun.append(state)
        time.sleep(0.02)
        begin(state)

    monkeypatch.setattr(stream, "_begin", slowly)
    threads = [threading.Thread(target=lambda: stream(x)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 1
    for a, b in zip(stream.state, expected, strict=True):
        close(a, b.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_layer_of_another_dtype_is_followed(backend, dtype):
    _, module = CASE.with_(layers=2).modules()
    stream, x = module.stream(3), torch.randn(3, 5)
    stream(x)
    module.to(dtype)
    assert stream.outdated
    with pytest.raises(RuntimeError, match=f"expected x of {dtype} on cpu, got torch.float32"):
        stream(x)
    state = stream.state
    assert state[0].dtype == dtype
    y = stream(x.to(dtype))
    assert y.dtype == dtype
    close(y, module(x.to(dtype).unsqueeze(0), state)[0][0].detach())
    assert not stream.outdated


def test_a_layer_that_moves_is_followed(backend):
    _, module = CASE.modules()
    stream = module.stream(3)
    module.to("meta")
    assert stream.outdated
    assert stream(torch.randn(3, 5, device="meta")).device.type == "meta"
    with pytest.raises(RuntimeError, match=r"expected x of torch\.float32 on meta, got .* on cpu"):
        stream(torch.randn(3, 5))


def test_rows_in_every_form(backend):
    _, module = CASE.with_(layers=2).modules()
    stream = module.stream(3)
    stream(torch.randn(3, 5))
    before = stream.state
    for nothing in ([], torch.tensor([]), torch.zeros(3, dtype=torch.bool)):
        stream.reset(nothing)
        assert all(map(torch.equal, stream.state, before))
    ones = torch.ones(2, 1, 20)
    for row in (1, torch.tensor(1), [1]):
        stream.state = before
        stream.reset(row, to=(ones, 2 * ones))
        for k, (now, then) in enumerate(zip(stream.state, before, strict=True)):
            assert (now[:, 1] == k + 1).all()
            assert torch.equal(now[:, [0, 2]], then[:, [0, 2]])


def test_states_that_do_not_fit_change_nothing(backend):
    _, module = CASE.with_(layers=2).modules()
    stream = module.stream(3)
    fits, other = torch.ones(2, 3, 20), torch.ones(2, 3, 7)
    with pytest.raises(RuntimeError, match="expand"):
        stream.reset(to=(fits, other))
    with pytest.raises(ValueError, match=r"expected states of shape \[2, 3, 20\]"):
        stream.state = (fits, other)
    with pytest.raises(IndexError):
        stream.reset(3)
    assert not any(s.any() for s in stream.state)


def test_a_stream_made_in_inference_mode_goes_on_outside(backend):
    with torch.inference_mode():
        _, module = CASE.modules()
        stream = module.stream(3)
        stream(torch.randn(3, 5))
    before = stream.state
    stream.reset([1])
    assert not stream.state[0][:, 1].any()
    stream.state = before
    stream(torch.randn(3, 5))
    with torch.inference_mode():
        stream(torch.randn(3, 5))
        stream.reset()
    assert not any(s.any() for s in stream.state)
