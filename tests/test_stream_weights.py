"""The weights under a stream: what it holds of them, and what it refuses."""

import threading

import pytest
import torch

import fused_lstm

B, I, H = 3, 5, 6  # noqa: E741


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return fused_lstm.LSTM(I, H, 2)


def assert_runs_as(stream, layer, x):
    """One step."""
    with torch.no_grad():
        wanted, state = layer(x.unsqueeze(0), stream.state)
    torch.testing.assert_close(stream(x), wanted[0])
    torch.testing.assert_close(stream.state, state)


def other_shape(layer):
    layer.weight_ih_l0.data = torch.randn(4 * H, I - 2)


def other_dtype(layer):
    layer.double()


def next_takes_more(layer):
    layer.weight_ih_l1.data = torch.randn(4 * H, H + 10)


def next_is_larger(layer):
    large = fused_lstm.LSTM(H, 4 * H)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(layer, f"{name}_l1").data = getattr(large, f"{name}_l0").data


def all_larger(layer):
    next_is_larger(layer)
    large = fused_lstm.LSTM(I, 4 * H)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(layer, f"{name}_l0").data = getattr(large, f"{name}_l0").data
    layer.weight_ih_l1.data = torch.randn(16 * H, 4 * H)


CHANGES = [other_shape, other_dtype, next_takes_more, next_is_larger, all_larger]


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_do_not_fit_are_refused(extension, layer, change):
    """And the stream goes on where it was when they fit again."""
    stream, x = extension.Stream(layer.all_weights, B), torch.randn(B, I)
    stream.run(x)
    before = {name: p.data for name, p in layer.named_parameters()}
    state = stream.h.clone(), stream.c.clone()
    change(layer)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="expected w"):
            stream.run(x)
        assert stream.outdated
    for name, data in before.items():
        getattr(layer, name).data = data
    with torch.no_grad():
        wanted, _ = layer(x.unsqueeze(0), state)
    torch.testing.assert_close(stream.run(x), wanted[0])
    assert not stream.outdated


@pytest.mark.parametrize("change", [other_shape, next_takes_more, next_is_larger])
def test_weights_that_do_not_fit_begin_no_stream(extension, layer, change):
    change(layer)
    with pytest.raises(RuntimeError):
        layer.stream(B)(torch.randn(B, I))


@pytest.mark.parametrize(
    "x",
    [torch.randn(B, I + 1), torch.randn(B - 1, I), torch.randn(I), torch.randn(B, I).to("meta")],
    ids=["features", "rows", "dimensions", "device"],
)
def test_kernels_refuse_other_inputs_themselves(extension, layer, x):
    stream = extension.Stream(layer.all_weights, B)
    with pytest.raises(RuntimeError, match="expected x"):
        stream.run(x)


def test_weights_in_the_memory_of_older_ones_are_new(extension, layer):
    """Assigned as .data, which counts no change: the old memory is free for the next but one."""
    stream, x = layer.stream(B), torch.randn(B, I)
    weight = layer.weight_hh_l0
    for _ in range(20):
        for _ in range(2):
            weight.data = weight.data * 0.9
        assert stream.outdated
        assert_runs_as(stream, layer, x)
        assert not stream.outdated


def test_another_view_of_the_same_memory_is_new(extension):
    layer = fused_lstm.LSTM(6, 24, bias=False)
    layer.weight_hh_l0.data = torch.randn(96, 96)[:, :24]
    stream = layer.stream(B)
    stream(torch.randn(B, 6))  # else the state, which the weight multiplies, is zero
    layer.weight_hh_l0.data = layer.weight_hh_l0.data.as_strided((96, 24), (1, 96))
    assert_runs_as(stream, layer, torch.randn(B, 6))


def test_layers_are_packed_again_while_others_ask(extension, layer):
    """From several threads: each finds the weights old, new or being packed, and all is in turn."""
    stream, x = layer.stream(B), torch.zeros(B, I)
    stop = threading.Event()
    failures = []

    def ask():
        try:
            while not stop.is_set():
                assert stream.outdated in (True, False)
                stream(x)
        except Exception as error:  # whatever it is, the test shows it
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    with torch.no_grad():
        for _ in range(300):
            layer.weight_hh_l1.mul_(1.0)
            stream(x)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert_runs_as(stream, layer, torch.randn(B, I))


def fused_adamw(layer):
    for p in layer.parameters():
        p.grad = torch.randn_like(p)
    torch.optim.AdamW(layer.parameters(), 0.1, fused=True).step()


def fused_sgd(layer):
    for p in layer.parameters():
        p.grad = torch.randn_like(p)
    torch.optim.SGD(layer.parameters(), 0.1, fused=True).step()


def average(layer):
    for p in layer.parameters():
        p.data.mul_(0.9).add_(torch.randn_like(p), alpha=0.1)


def one_gate(layer):
    layer.bias_hh_l1.data[H : 2 * H] += 1


def storage_comes_back(layer):
    for p in layer.parameters():
        storage = p.untyped_storage()
        size = storage.nbytes()
        storage.resize_(0)
        storage.resize_(size)
        p.data.normal_()


@pytest.mark.parametrize(
    "change",
    [fused_adamw, fused_sgd, average, one_gate, storage_comes_back],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_changes_that_count_none_are_seen(extension, layer, change, dtype):
    layer.to(dtype)
    stream, x = layer.stream(B), torch.randn(B, I).to(dtype)
    stream(x)
    assert not stream.outdated
    change(layer)
    assert stream.outdated
    tolerance = 3e-2 if dtype.itemsize == 2 else 1e-5
    with torch.no_grad():
        wanted = layer(x.unsqueeze(0), stream.state)[0][0]
    torch.testing.assert_close(stream(x), wanted, rtol=tolerance, atol=tolerance)
    assert not stream.outdated


def test_changes_of_inference_tensors_are_seen(extension):
    with torch.inference_mode():
        layer = fused_lstm.LSTM(I, H)
        stream, x = layer.stream(B), torch.randn(B, I)
        layer.weight_ih_l0.mul_(0.5)
        assert stream.outdated
        assert_runs_as(stream, layer, x)


@pytest.mark.parametrize("gate", range(4))
@pytest.mark.parametrize("width", [1, 3, 20])
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"])
def test_a_change_of_any_gate_is_seen(extension, name, width, gate):
    """Also of a weight that lies column by column."""
    layer = fused_lstm.LSTM(max(width, 2), width + 1, proj_size=width)
    for p in layer.parameters():
        p.data = p.data.T.contiguous().T if p.dim() == 2 else p.data
    stream = layer.stream(B)
    weight = getattr(layer, f"{name}_l0")
    part = weight.data.chunk(4, 0)[gate] if name != "weight_hr" else weight.data
    part.add_(1)
    assert stream.outdated
    for p in layer.parameters():  # and nothing beside a weight is read
        p.data = torch.cat([p.data, p.data])[: len(p)]
    x = torch.randn(B, max(width, 2))
    stream(x)
    p = weight.data
    p.as_strided((p.numel(),), (1,), p.numel()).add_(1)
    assert not stream.outdated


def test_weights_without_memory_are_refused(extension, layer):
    """As FSDP leaves them between calls: reading them would end the process."""
    stream, x = layer.stream(B), torch.randn(B, I)
    storage = layer.weight_hh_l1.untyped_storage()
    before, size = layer.weight_hh_l1.detach().clone(), storage.nbytes()
    storage.resize_(0)
    assert stream.outdated
    with pytest.raises(RuntimeError, match="expected w_hh with its memory"):
        stream(x)
    storage.resize_(size)
    layer.weight_hh_l1.data.copy_(before)
    assert_runs_as(stream, layer, x)


def test_nans_are_no_change(extension, layer):
    layer.weight_hh_l0.data.fill_(float("nan"))
    stream = layer.stream(B)
    stream(torch.randn(B, I))
    assert not stream.outdated


def test_weights_that_are_no_parameters(backend, layer):
    """Plain attributes, as a network that computes the weights of another sets them."""
    stream = layer.stream(B)
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    for dtype in (torch.float32, torch.float64):
        for name, weight in weights.items():
            layer._parameters.pop(name, None)
            setattr(layer, name, 0.9 * weight.to(dtype))
        x, state = torch.randn(B, I, dtype=dtype), tuple(s.to(dtype) for s in stream.state)
        assert_runs_as(layer.stream(B), layer, x)
        with torch.no_grad():
            wanted, states = layer(x.unsqueeze(0), state)
        torch.testing.assert_close(stream(x), wanted[0])
        torch.testing.assert_close(stream.state, states)
