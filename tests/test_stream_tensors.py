"""What a stream makes of tensors that are not numbers in memory."""

import numpy
import pytest
import torch

import fused_lstm

I, H, B = 4, 6, 2  # noqa: E741


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
