"""What a stream takes for a batch and for a state."""

import numpy
import pytest
import torch

import fused_lstm

I, H, B = 4, 6, 2  # noqa: E741


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
