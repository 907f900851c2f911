"""What a stream makes of tensors that are not numbers in memory, and of what only watches it."""

import threading

import numpy
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import fused_lstm

I, H, B = 4, 6, 2  # noqa: E741


@pytest.fixture
def layer(extension):
    return fused_lstm.LSTM(I, H)


def functional(x):
    return torch._to_functional_tensor(x)


def of_fake(x):
    return FakeTensorMode().from_tensor(x)


def zero(x):
    return torch._efficientzerotensor(x.shape)


def two(x):
    return TwoTensor(x, x.clone())


def freed(x):
    x.untyped_storage().resize_(0)
    return x


def cut(x):
    x.untyped_storage().resize_(x.nbytes - 1)
    return x


NO_NUMBERS = {
    "functional": functional,
    "fake": of_fake,
    "zero": zero,
    "subclass": two,
    "sparse": torch.Tensor.to_sparse,
    "mkldnn": torch.Tensor.to_mkldnn,
    "freed": freed,
    "cut": cut,
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
@pytest.mark.parametrize("direct", [False, True], ids=["stream", "kernels"])
def test_what_is_no_numbers_in_memory_is_refused(extension, layer, kind, direct):
    """Reading it would end the process."""
    stream, x = layer.stream(B), torch.randn(5, B, I)
    given = NO_NUMBERS[kind](torch.randn(5, B, I))
    run = extension.Stream(layer.all_weights, B).run if direct else stream
    with pytest.raises(RuntimeError, match=r"expected x (as a plain dense tensor|with its memory)"):
        run(given)
    torch.testing.assert_close(stream(x), layer(x)[0].detach())


def test_functionalize_is_refused(layer):
    with pytest.raises(RuntimeError, match="expected x as a plain dense tensor"):
        torch.func.functionalize(layer.stream(B))(torch.randn(5, B, I))


@pytest.mark.parametrize("kind", ["fake", "subclass", "freed", "cut"])
def test_kernels_refuse_weights_that_are_no_numbers(extension, layer, kind):
    weights = [NO_NUMBERS[kind](w.detach().clone()) for w in layer.all_weights[0]]
    without = kind in ("freed", "cut")
    words = "w_ih with its memory" if without else "weights that are plain dense tensors"
    with pytest.raises(RuntimeError, match=f"expected {words}"):
        extension.Stream([weights], B)


def of_two_tensors(layer):
    for name, p in [*layer.named_parameters()]:
        setattr(layer, name, torch.nn.Parameter(two(p.detach())))
    return layer


@pytest.mark.filterwarnings("ignore::fused_lstm.FusedLSTMWarning")
def test_weights_of_a_subclass_take_the_layer(layer):
    x = torch.randn(5, B, I)
    expected = layer(x)[0].detach()
    stream = of_two_tensors(layer).stream(B)
    assert stream._kernels is None
    found = torch.cat([stream(two(part.clone())) for part in (x[:2], x[2:])])
    torch.testing.assert_close(found.a, expected)
    torch.testing.assert_close(found.b, expected)


class Watched(torch.nn.Parameter):
    """Plain numbers, of which Python is to see every use."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def test_weights_of_a_class_of_their_own_take_the_layer(layer):
    x = torch.randn(5, B, I)
    expected = layer(x)[0].detach()
    layer.weight_hh_l0 = Watched(layer.weight_hh_l0.detach())
    stream = layer.stream(B)
    before = Watched.calls
    torch.testing.assert_close(torch.Tensor(stream(x)), expected)
    assert Watched.calls > before


@pytest.mark.filterwarnings("ignore")  # distributed modules warn when they are imported
def test_distributed_weights_and_inputs(layer, tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/f", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        x = torch.randn(5, B, I)
        shared = distribute_tensor(x, mesh, [Replicate()])
        with pytest.raises(RuntimeError, match="expected x as a plain dense tensor"):
            layer.stream(B)(shared)
        expected = layer(x)[0].detach()
        for name, p in [*layer.named_parameters()]:
            spread = distribute_tensor(p.detach(), mesh, [Replicate()])
            setattr(layer, name, torch.nn.Parameter(spread))
        stream = layer.stream(B)
        assert stream._kernels is None
        torch.testing.assert_close(stream(shared).to_local(), expected)
    finally:
        dist.destroy_process_group()


def test_a_stream_made_under_fake_tensors(layer):
    with FakeTensorMode():
        stream = layer.stream(B)  # of numbers: it runs afterwards
        with pytest.raises(RuntimeError, match="a stream cannot be traced"):
            stream(torch.randn(5, B, I))
        fake = fused_lstm.LSTM(I, H).stream(B)
        assert fake(torch.randn(5, B, I)).shape == (5, B, H)
    x = torch.randn(5, B, I)
    torch.testing.assert_close(stream(x), layer(x)[0].detach())


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.functionalize])
def test_a_transform_around_a_constant(layer, transform):
    """Neither the stream nor its input are of the transform."""
    stream, x = layer.stream(B), torch.randn(5, B, I)
    expected = layer(x)[0].detach()
    found = []

    def f(t):
        found.append(stream(x))
        found.append(layer.stream(B)(x))
        return t.sum()

    transform(f)(torch.randn(3))
    for y in found:
        torch.testing.assert_close(y, expected)


class Model(torch.nn.Module):
    def __init__(self, layer, held):
        super().__init__()
        self.stream = layer.stream(B)
        self.layer = layer if held else None

    def forward(self, x):
        return self.stream(x)


TRACERS = {
    "jit": lambda model, x: torch.jit.trace(model, x),
    "make_fx": lambda model, x: make_fx(model)(x),
    "make_fx, fake": lambda model, x: make_fx(model, tracing_mode="fake")(x),
    "make_fx, pre-dispatch": lambda model, x: make_fx(model, pre_dispatch=True)(x),
    "export": lambda model, x: torch.export.export(model, (x,)),
    "export, strict": lambda model, x: torch.export.export(model, (x,), strict=True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("held", [True, False], ids=["submodule", "alone"])
@pytest.mark.parametrize("tracer", TRACERS)
def test_no_trace_of_a_stream(backend, tracer, held):
    """It would hold neither the computation nor the state; and the stream goes on afterwards."""
    layer, x = fused_lstm.LSTM(I, H), torch.randn(5, B, I)
    model = Model(layer, held)
    expected = layer(x)[0].detach()
    kind, match = RuntimeError, "a stream cannot be traced.* call the layer"
    if tracer == "export, strict":  # Dynamo has words of its own: it does not look into the stream
        kind, match = torch._dynamo.exc.Unsupported, r"self\._kernels\.run|self\._lock"
    with pytest.raises(kind, match=match):
        TRACERS[tracer](model, x)
    torch.testing.assert_close(model(x), expected)


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_modes_that_watch_see_the_layer(layer, dtype):
    layer, x = layer.to(dtype), torch.randn(5, B, I).to(dtype)
    expected = layer(x)[0].detach()
    stream = layer.stream(B)
    found = [stream(x[:1])]
    with Watch() as watch:
        found.append(stream(x[1:2]))
    assert any("lstm" in name for name in watch.names)
    with Watch():  # also what it is made of
        made = layer.stream(B)
    found.append(stream(x[2:]))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for y in (torch.cat(found), made(x)):
        torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)


def test_a_trace_with_other_weights_leaves_the_stream_as_it_was(layer):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.stream = layer, layer.stream(B)

        def forward(self, x):
            return self.stream(x)

    model, x = Model(), torch.randn(5, B, I)
    expected, state = model(x), [t.clone() for t in model.stream.state]
    weight = layer.weight_hh_l0.detach().clone()

    def call(w, x):
        return functional_call(model, {"layer.weight_hh_l0": w}, (x,))

    trace = make_fx(call, tracing_mode="fake")
    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be traced"):
        trace(weight, x)
    torch.testing.assert_close(model.stream.state, tuple(state), rtol=0, atol=0)
    model.stream.reset()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_watched_calls_take_turns(extension, layer, monkeypatch):
    """With those of other threads, in which no mode is active: they wait."""
    x, stream = torch.randn(1, B, I), layer.stream(B)
    with torch.no_grad():
        _, expected = layer(x.expand(2, B, I))
    inside, go_on, done = (threading.Event() for _ in range(3))
    run = stream._by_layer

    def by_layer(x):
        inside.set()
        assert go_on.wait(10)
        return run(x)

    def watched():
        with Watch():
            stream(x)

    def unwatched():
        stream(x)
        done.set()

    monkeypatch.setattr(stream, "_by_layer", by_layer)
    threads = [threading.Thread(target=watched), threading.Thread(target=unwatched)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    waited = not done.wait(0.2)
    go_on.set()
    for thread in threads:
        thread.join()
    assert waited
    torch.testing.assert_close(stream.state, tuple(expected))


def negative(x):
    return torch._neg_view(x.neg())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_negated_views(extension, dtype):
    x, hx = torch.randn(5, B, I).to(dtype), torch.randn(2, 1, B, H).to(dtype).unbind()
    layer = fused_lstm.LSTM(I, H).to(dtype)
    expected = layer(x, hx)[0].detach()
    streams = [layer.stream(B) for _ in range(3)]
    for stream in streams:
        stream.state = (negative(hx[0]), negative(hx[1]))
    assert torch.equal(streams[0](negative(x)), streams[1](x))
    torch.testing.assert_close(streams[1].state, streams[0].state)
    for p in layer.parameters():
        p.data = negative(p.data)
    assert streams[2].outdated
    tolerance = 3e-2 if dtype.itemsize == 2 else 1e-5
    torch.testing.assert_close(streams[2](x), expected, rtol=tolerance, atol=tolerance)


def test_imaginary_part_of_a_conjugate(extension):
    """A view of one column, which is dense."""
    x = torch.randn(5, B, 1, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    layer = fused_lstm.LSTM(1, H)
    torch.testing.assert_close(layer.stream(B)(x), layer(x)[0].detach())


def test_the_same_memory_negated_is_new(extension):
    layer = fused_lstm.LSTM(I, H)
    stream, x = layer.stream(B), torch.randn(5, B, I)
    layer.weight_ih_l0.data = torch._neg_view(layer.weight_ih_l0.data)
    assert stream.outdated
    torch.testing.assert_close(stream(x), layer(x)[0].detach())


@pytest.mark.parametrize("batch", [1.5, None, True, "2", numpy.bool_(True)])
def test_a_batch_is_an_int(backend, batch):
    name = type(batch).__name__
    with pytest.raises(TypeError, match=rf"expected batch as an int, got {name}$"):
        fused_lstm.LSTM(I, H).stream(batch)


def test_an_int_of_numpy_is_a_batch(backend):
    stream = fused_lstm.LSTM(I, H).stream(numpy.int64(B))
    assert stream(torch.randn(B, I)).shape == (B, H)


@pytest.mark.parametrize("layers", [1, 2])
def test_states_are_two_tensors(backend, layers):
    stream = fused_lstm.LSTM(I, H, layers).stream(B)
    h = torch.ones(layers, B, H)
    for state, got in [
        (None, "NoneType"),
        (h, "Tensor"),
        ((h,), "1 of them"),
        ((h, h, h), "3 of them"),
        ((h, None), "Tensor and NoneType"),
        (7, "int"),
    ]:
        with pytest.raises(ValueError, match=rf"expected states \(h, c\), two tensors, got {got}"):
            stream.state = state
        if state is not None:
            with pytest.raises(ValueError, match=r"expected states \(h, c\), two tensors"):
                stream.reset(0, to=state)
    assert not any(s.any() for s in stream.state)
    stream.state = [h, h]
    stream.reset(0, to=[0.5, 0.5])
    for s in stream.state:
        assert (s[:, 0] == 0.5).all()
        assert (s[:, 1] == 1).all()
