"""Weights in other layouts give what their formulas say; initial values; a learned state."""

import re

import pytest
import torch

import fused_lstm

T, B, I, H = 4, 3, 5, 6  # noqa: E741


def textbook(x, W, b, order):
    """One layer of ``[T, B, I]``, as textbooks write it."""
    h = c = x.new_zeros(x.shape[1], H)
    ys = []
    for x_t in x:
        v = torch.cat([h, x_t] if order == "hx" else [x_t, h], 1)
        f = torch.sigmoid(v @ W["f"].t() + b["f"])
        i = torch.sigmoid(v @ W["i"].t() + b["i"])
        c = f * c + i * torch.tanh(v @ W["C"].t() + b["C"])
        h = torch.sigmoid(v @ W["o"].t() + b["o"]) * torch.tanh(c)
        ys.append(h)
    return torch.stack(ys)


@pytest.mark.parametrize("order", ["hx", "xh"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_concatenated(order, layers, bias):
    sizes = [H + (H if k else I) for k in range(layers)]
    W = {g: [torch.randn(H, n).double() for n in sizes] for g in "fiCo"}
    b = {g: [torch.randn(H).double() * bias for _ in sizes] for g in "fiCo"}
    arguments = {f"W_{g}": W[g] if layers > 1 else W[g][0] for g in W}
    if bias:
        arguments |= {f"b_{g}": b[g] if layers > 1 else b[g][0] for g in b}
    module = fused_lstm.LSTM.from_concatenated(**arguments, order=order, batch_first=True)
    assert module.bias == bias
    assert module.num_layers == layers
    assert module.batch_first
    x = torch.randn(T, B, I).double()
    wanted = x
    for k in range(layers):
        wanted = textbook(wanted, {g: W[g][k] for g in W}, {g: b[g][k] for g in b}, order)
    torch.testing.assert_close(module(x.transpose(0, 1))[0].transpose(0, 1), wanted)
    back = module.to_concatenated(order=order)
    assert set(back) == {f"W_{g}" for g in W} | ({f"b_{g}" for g in b} if bias else set())
    for g in W:
        torch.testing.assert_close(back[f"W_{g}"], W[g])
        if bias:
            torch.testing.assert_close(back[f"b_{g}"], b[g])


def kernels(order, x, kernel, recurrent, bias):
    """One layer of weights ``[features, 4H]`` whose gates are in this order."""
    h = c = x.new_zeros(x.shape[1], H)
    ys = []
    for x_t in x:
        parts = (x_t @ kernel + h @ recurrent + bias).chunk(4, 1)
        at = dict(zip(order, parts, strict=True))
        c = torch.sigmoid(at["f"]) * c + torch.sigmoid(at["i"]) * torch.tanh(at["g"])
        h = torch.sigmoid(at["o"]) * torch.tanh(c)
        ys.append(h)
    return torch.stack(ys)


@pytest.mark.parametrize(("library", "order"), [("keras", "ifgo"), ("haste", "igfo")])
def test_kernels(library, order):
    shapes = [(I, 4 * H), (H, 4 * H), (4 * H,), (H, 4 * H), (H, 4 * H), (4 * H,)]
    weights = [torch.randn(s).double() for s in shapes]
    module = getattr(fused_lstm.LSTM, f"from_{library}")([w.numpy() for w in weights])
    x = torch.randn(T, B, I).double()
    wanted = kernels(order, kernels(order, x, *weights[:3]), *weights[3:])
    torch.testing.assert_close(module(x)[0], wanted)
    torch.testing.assert_close(getattr(module, f"to_{library}")(), weights)


def test_keras_in_both_directions_without_bias():
    weights = [torch.randn(s) for s in ((I, 4 * H), (H, 4 * H)) * 2]
    module = fused_lstm.LSTM.from_keras(weights, bidirectional=True)
    x = torch.randn(T, B, I)
    ahead, back = (
        kernels("ifgo", t, *w, 0.0) for t, w in ((x, weights[:2]), (x.flip(0), weights[2:]))
    )
    torch.testing.assert_close(module(x)[0], torch.cat([ahead, back.flip(0)], 2))
    torch.testing.assert_close(module.to_keras(), weights)


def test_refusals():
    W = torch.randn(H, H + I)
    with pytest.raises(ValueError, match="'hx' or 'xh', got 'x'"):
        fused_lstm.LSTM.from_concatenated(W, W, W, W, order="x")
    with pytest.raises(ValueError, match="all four biases or none"):
        fused_lstm.LSTM.from_concatenated(W, W, W, W, torch.zeros(H))
    with pytest.raises(ValueError, match="expected weights of shape"):
        fused_lstm.LSTM.from_concatenated(W[:, :3], W[:, :3], W[:, :3], W[:, :3])
    with pytest.raises(ValueError, match="kernel"):
        fused_lstm.LSTM.from_keras([W])
    with pytest.raises(ValueError, match="expected a weight of shape"):
        fused_lstm.LSTM.from_keras([torch.zeros(I, 4 * H), torch.zeros(H, 4 * H + 4)])
    both = fused_lstm.LSTM(I, H, bidirectional=True)
    for convert in (both.to_concatenated, both.to_haste):
        with pytest.raises(ValueError, match="one direction"):
            convert()
    with pytest.raises(ValueError, match="projection"):
        fused_lstm.LSTM(I, H, proj_size=2).to_keras()


def test_layers_that_gates_have_not():
    W, b = torch.randn(H, H + I), torch.randn(H)
    upper = torch.randn(H, 2 * H)
    for given in ([[W, upper], [W], [W], [W]], [[], [], [], []], [[W], [W], [W], []]):
        counts = [len(each) for each in given]
        words = re.escape(f"expected as many layers of each gate, at least 1, got {counts}")
        with pytest.raises(ValueError, match=words):
            fused_lstm.LSTM.from_concatenated(*given)
    with pytest.raises(ValueError, match=r"expected biases of 1 layers, got \[1, 1, 2, 1\]"):
        fused_lstm.LSTM.from_concatenated(W, W, W, W, b, b, [b, b], b)
    with pytest.raises(ValueError, match="expected weights of shape"):
        fused_lstm.LSTM.from_concatenated(W, W[:, :-1], W, W)
    with pytest.raises(ValueError, match=r"expected biases of shape \[6\], got \[\[7\], \[5\]"):
        fused_lstm.LSTM.from_concatenated(W, W, W, W, b[:5], torch.randn(7), b, b)


def test_integer_weights_make_a_layer_of_the_default_dtype():
    W, kernel, recurrent = torch.ones(H, H + I).long(), torch.ones(I, 4 * H), torch.ones(H, 4 * H)
    for layer in (
        fused_lstm.LSTM.from_concatenated(W, W, W, W),
        fused_lstm.LSTM.from_keras([kernel.int(), recurrent.int()]),
    ):
        assert layer.weight_ih_l0.dtype == torch.float32
        assert (layer.weight_hh_l0 == 1).all()
    layer = fused_lstm.LSTM.from_keras([kernel.int(), recurrent.int()], dtype=torch.float64)
    assert layer.weight_ih_l0.dtype == torch.float64


def test_options_that_the_weights_decide():
    W, kernels = torch.randn(H, H + I), [torch.randn(I, 4 * H), torch.randn(H, 4 * H)]
    with pytest.raises(ValueError, match="haste's LSTM has one direction"):
        fused_lstm.LSTM.from_haste(kernels, bidirectional=True)
    with pytest.raises(ValueError, match="the textbook's cell has one direction"):
        fused_lstm.LSTM.from_concatenated(W, W, W, W, bidirectional=True)
    with pytest.raises(TypeError, match=r"expected no option that the weights decide, got bias, n"):
        fused_lstm.LSTM.from_keras(kernels, num_layers=1, bias=False)
    for name in ("bias", "hidden_size", "input_size", "num_layers", "proj_size"):
        with pytest.raises(TypeError, match=f"that the weights decide, got {name}$"):
            fused_lstm.LSTM.from_keras(kernels, **{name: 1})
    assert not fused_lstm.LSTM.from_haste(kernels, bidirectional=False).bidirectional


@pytest.mark.parametrize("cls", [fused_lstm.LSTM, torch.nn.LSTM, fused_lstm.LSTMCell])
def test_initial_values(cls):
    layer = cls(I, H) if cls is fused_lstm.LSTMCell else cls(I, H, 2, bidirectional=True)
    fused_lstm.initialise(layer)
    for name, p in layer.named_parameters():
        gates = p.detach().chunk(4)
        if "weight_hh" in name:
            for gate in gates:
                torch.testing.assert_close(gate @ gate.t(), torch.eye(H), rtol=0, atol=1e-5)
        elif "weight_ih" in name:
            bound = (6 / (H + p.shape[1])) ** 0.5
            assert all(0.5 * bound < gate.abs().max() <= bound for gate in gates)
        else:
            forget = 1.0 if "bias_ih" in name else 0.0
            assert [gate.unique().tolist() for gate in gates] == [[0], [forget], [0], [0]]


def test_choice_of_initial_values():
    layer = fused_lstm.LSTM(I, H, proj_size=2)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    fused_lstm.initialise(
        layer, input="zeros", recurrent=None, bias=lambda t: t.fill_(3.0), forget_bias=None
    )
    assert not layer.weight_ih_l0.any()
    assert not layer.weight_hr_l0.any()
    assert torch.equal(layer.weight_hh_l0, before["weight_hh_l0"])
    assert (layer.bias_ih_l0 == 3).all()
    assert (layer.bias_hh_l0 == 3).all()
    with pytest.raises(ValueError, match="expected one of xavier_uniform"):
        fused_lstm.initialise(layer, input="glorot")


@pytest.mark.parametrize("layer", [torch.nn.GRU(4, 6), torch.nn.LSTMCell(4, 6)])
def test_initial_states_are_of_layers(layer):
    with pytest.raises(TypeError, match=r"expected an LSTM, got (GRU|LSTMCell)"):
        fused_lstm.InitialState(layer)


def test_learned_initial_state():
    layer = fused_lstm.LSTM(I, H, 2, bidirectional=True, proj_size=2, dtype=torch.float64)
    initial = fused_lstm.InitialState(layer)
    x = torch.randn(T, B, I).double()
    torch.testing.assert_close(layer(x, initial(B)), layer(x))
    with torch.no_grad():
        initial.h.normal_()
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2, 1] = True
    y, _ = layer(x, initial(B), reset=reset, reset_hx=initial())
    y.sum().backward()
    assert initial.h.grad.abs().min() > 0
    assert initial.c.grad.abs().min() > 0
