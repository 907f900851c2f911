"""What an nn.Module user does with a layer: save, copy, move, tie, normalise, call functionally."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.utils.prune as prune
from cases import DTYPE_IDS, DTYPES, Case
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fused_lstm

FULL = Case(layers=2, bidirectional=True, P=2, dropout=0.3)


def assert_same(ours, theirs, x):
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.fixture
def x():
    return torch.randn(5, 3, 4)


def test_is_not_an_nn_lstm_but_an_rnn_base():
    ours = fused_lstm.LSTM(4, 6)
    assert isinstance(ours, nn.RNNBase)
    assert not isinstance(ours, nn.LSTM)
    assert ours.mode == "LSTM"


@pytest.mark.parametrize("case", [Case(), FULL, Case(bias=False), FULL.with_(bias=False)])
def test_state_dict_passes_both_ways(case, x):
    theirs, ours = case.modules()  # loads theirs into ours
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(ours, theirs, x)
    with torch.no_grad():
        for p in ours.parameters():
            p.mul_(0.5)
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs, x)


def test_same_seed_same_initial_weights():
    torch.manual_seed(3)
    theirs = nn.LSTM(4, 6, 2)
    torch.manual_seed(3)
    ours = fused_lstm.LSTM(4, 6, 2)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_repr_and_attributes():
    theirs, ours = FULL.modules()
    assert repr(ours) == repr(theirs)
    for name in theirs.__constants__:
        assert getattr(ours, name) == getattr(theirs, name)
    assert [[p.shape for p in g] for g in ours.all_weights] == [
        [p.shape for p in g] for g in theirs.all_weights
    ]


def test_everything_public_of_nn_lstm_is_there():
    theirs, ours = FULL.modules()
    assert not [name for name in set(dir(theirs)) - set(dir(ours)) if not name.startswith("_")]


def test_helpers_for_subclasses(x):
    theirs, ours = FULL.modules()
    state = (torch.randn(4, 3, 2), torch.randn(4, 3, 6))
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        ours.permute_hidden(state, order), theirs.permute_hidden(state, order), rtol=0, atol=0
    )
    assert ours.get_expected_cell_size(x, None) == theirs.get_expected_cell_size(x, None)
    ours.check_forward_args(x, state, None)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(4, 3, 6\)"):
        ours.check_forward_args(x, (state[0], state[0]), None)


def test_pickle_deepcopy_and_torch_save(backend, x):
    theirs, ours = FULL.modules()
    stream = io.BytesIO()
    torch.save(ours, stream)
    stream.seek(0)
    copies = [
        copy.deepcopy(ours),
        copy.copy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(stream, weights_only=False),
    ]
    for other in copies:
        assert type(other) is fused_lstm.LSTM
        assert_same(other, theirs, x)


def test_a_copy_owns_its_weights(backend, x):
    theirs, ours = Case().modules()
    other = copy.deepcopy(ours)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert_same(ours, theirs, x)
    assert other(x)[0].abs().max() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_conversions(backend, x, dtype):
    theirs, ours = Case().modules()
    for move in (
        lambda m: m.to(dtype),
        lambda m: m.double().to(dtype),
        lambda m: m.half().to(dtype),
        lambda m: copy.deepcopy(m).to(dtype=dtype),
    ):
        ours, theirs = move(ours), move(theirs)
        y, (h_n, c_n) = ours(x.to(dtype))
        assert y.dtype == h_n.dtype == c_n.dtype == dtype
        low = torch.finfo(dtype).bits == 16
        tolerances = dict(rtol=2e-2, atol=2e-2) if low else {}
        torch.testing.assert_close(y, theirs(x.to(dtype))[0], **tolerances)


def test_share_memory_and_to_empty(x):
    theirs, ours = Case().modules()
    assert_same(ours.share_memory(), theirs, x)
    ours = fused_lstm.LSTM(4, 6, device="meta").to_empty(device="cpu")
    ours.load_state_dict(theirs.state_dict())
    assert_same(ours, theirs, x)


def test_flatten_parameters_does_nothing(x):
    theirs, ours = Case().modules()
    before = [(id(p), p.data_ptr()) for p in ours.parameters()]
    assert ours.flatten_parameters() is None
    assert [(id(p), p.data_ptr()) for p in ours.parameters()] == before
    assert_same(ours, theirs, x)


def test_assigning_a_parameter_or_its_data(backend, x):
    theirs, ours = Case().modules()
    for module in (theirs, ours):
        module.weight_hh_l0 = nn.Parameter(torch.full((24, 6), 0.1))
        module.bias_ih_l0.data = torch.full((24,), 0.2)
    assert_same(ours, theirs, x)


def test_assigning_to_flat_weights(backend, x):
    """As older weight-drop code does: by position, what may be assigned by name."""
    theirs, ours = Case().modules()
    for module in (theirs, ours):
        module._flat_weights[1] = module.weight_hh_l0 = nn.Parameter(torch.full((24, 6), 0.1))
    assert_same(ours, theirs, x)
    ours._flat_weights[2] = nn.Parameter(torch.full((24,), 0.3))
    assert (ours.bias_ih_l0 == 0.3).all()
    with pytest.raises(TypeError, match=r"cannot assign .* as parameter 'weight_hh_l0'"):
        ours._flat_weights[1] = torch.zeros(24, 6)
    with pytest.raises(TypeError, match="one by one, or by name"):
        ours._flat_weights[:2] = []
    dropped = ours.weight_hh_l0 * 0.5
    del ours.weight_hh_l0
    ours._flat_weights[1] = dropped
    assert ours._flat_weights[1] is ours.weight_hh_l0 is dropped
    ours._flat_weights = [w * 2 if w is dropped else w for w in ours._flat_weights]
    torch.testing.assert_close(ours.weight_hh_l0, dropped * 2)
    for change in (list.append, list.extend, list.insert, list.__iadd__, list.__delitem__):
        with pytest.raises(TypeError, match="one by one, or by name"):
            getattr(ours._flat_weights, change.__name__)(0)
    assert type(copy.copy(ours._flat_weights)) is list


def test_flat_weights_that_are_what_the_layer_has(backend, x):
    """As fastai 1 drops weights: put among the parameters by hand, then into the list."""
    grads = []
    for module in Case().modules():
        raw = nn.Parameter(module.weight_hh_l0.detach().clone())
        module._parameters["weight_hh_l0"] = dropped = raw * 0.5
        module._flat_weights[module._flat_weights_names.index("weight_hh_l0")] = dropped
        grads += torch.autograd.grad(module(x)[0].sum(), raw)
    torch.testing.assert_close(*grads)


def test_a_parametrized_layer_can_be_moved(backend, x):
    """What RNNBase writes into its list of weights must not write through a parametrization."""
    theirs, ours = Case().modules()
    for module in (theirs, ours):
        parametrizations.weight_norm(module, "weight_hh_l0")
        module.double()
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    ours.float().double()
    torch.testing.assert_close(ours.state_dict(), before)
    torch.testing.assert_close(ours(x.double()), theirs(x.double()))


def test_weights_anywhere_in_memory(backend, x):
    """Slices, transposes and expanded views, which cuDNN warns about or refuses."""
    theirs, _ = Case().modules()
    big = torch.randn(48, 30)
    scattered = torch.randn(48)[::2]
    for w_ih, w_hh, b_ih in (
        (big[:24, 3:7], big[::2, 10:16], torch.randn(1).expand(24)),
        (torch.randn(4, 24).t(), torch.randn(6, 24).t(), scattered),
        (torch.randn(24, 1).expand(24, 4), torch.randn(1, 6).expand(24, 6), scattered),
    ):
        params = [w.requires_grad_() for w in (w.detach() for w in (w_ih, w_hh, b_ih, scattered))]
        y = fused_lstm.lstm(x, None, [params])[0]
        for p, q in zip(theirs.parameters(), params, strict=True):
            p.data = q.detach().clone(memory_format=torch.contiguous_format)
            p.grad = None
        expected = theirs(x)[0]
        torch.testing.assert_close(y, expected)
        expected.sin().sum().backward()
        found = torch.autograd.grad(y.sin().sum(), params)
        torch.testing.assert_close(list(found), [p.grad for p in theirs.parameters()])


@pytest.mark.parametrize("batch_first", [False, True])
def test_inputs_anywhere_in_memory(backend, device, batch_first):
    theirs, ours = Case(batch_first=batch_first, device=device).modules()
    big = torch.randn(10, 6, 16, device=device)
    views = [
        big[::2, ::2, 2:6],
        big[:5, :3, ::4],
        big.permute(1, 0, 2)[:5, :3, 1:5],
        big[0, 0, :4].expand(5, 3, 4),
        big[:5, :1, :4].expand(5, 3, 4),
        big.permute(2, 1, 0)[:5, :3, 6:],
    ]
    for view in views:
        v, w = (view.detach().requires_grad_() for _ in range(2))
        hx = tuple(big.permute(2, 1, 0)[:1, 1:6, :6] for _ in range(2))
        if not batch_first:
            hx = tuple(t[:, :3] for t in hx)
        y, expected = ours(v, hx)[0], theirs(w, hx)[0]
        torch.testing.assert_close(y, expected)
        y.sin().sum().backward()
        expected.sin().sum().backward()
        torch.testing.assert_close(v.grad, w.grad)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("normalise", [nn.utils.weight_norm, parametrizations.weight_norm])
def test_weight_norm(backend, x, normalise):
    theirs, ours = Case(layers=2).modules()
    for module in (theirs, ours):
        normalise(module, "weight_hh_l0")
        normalise(module, "weight_ih_l1")
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            module(x)[0].sin().sum().backward()
            optimizer.step()
    assert_same(ours, theirs, x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_spectral_norm(backend, x):
    theirs, ours = Case().modules()
    for module in (theirs, ours):
        torch.manual_seed(0)
        parametrizations.spectral_norm(module, "weight_hh_l0")
        module.eval()  # in training, each look at a weight is one more power iteration
        module(x)[0].sum().backward()
    assert_same(ours, theirs, x)
    for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


def test_parametrize(backend, x):
    class Halve(nn.Module):
        def forward(self, weight):
            return weight / 2

    theirs, ours = Case().modules()
    for module in (theirs, ours):
        parametrize.register_parametrization(module, "weight_hh_l0", Halve())
    assert_same(ours, theirs, x)
    parametrize.remove_parametrizations(ours, "weight_hh_l0")
    assert type(ours) is fused_lstm.LSTM
    assert_same(ours, theirs, x)


def test_a_parametrized_layer_can_be_copied_after_a_call(x):
    ours = fused_lstm.LSTM(4, 6)
    parametrizations.weight_norm(ours, "weight_hh_l0")
    y = ours(x)[0]
    torch.testing.assert_close(copy.deepcopy(ours)(x)[0], y)


def test_functional_call_uses_the_given_weights(backend, x):
    theirs, ours = Case(layers=2).modules()
    weights = {k: torch.randn_like(v) for k, v in theirs.state_dict().items()}
    given = torch.func.functional_call(ours, weights, (x,))
    torch.testing.assert_close(given, torch.func.functional_call(theirs, weights, (x,)))
    assert_same(ours, theirs, x)


def test_pruning(backend, x):
    theirs, ours = Case().modules()
    for module in (theirs, ours):
        prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
    assert (ours.weight_hh_l0 == 0).sum() == 72
    assert_same(ours, theirs, x)


def test_hooks_run(backend, x):
    calls = []
    ours = fused_lstm.LSTM(4, 6)
    ours.register_forward_pre_hook(lambda m, args: calls.append("before"))
    ours.register_forward_hook(lambda m, args, out: calls.append("after"))
    ours.register_full_backward_pre_hook(lambda m, grads: calls.append("before backward"))
    ours.register_full_backward_hook(lambda m, given, taken: calls.append("after backward"))
    ours.weight_hh_l0.register_hook(lambda grad: grad * 0)
    ours(x.requires_grad_())[0].sum().backward()
    assert calls == ["before", "after", "before backward", "after backward"]
    assert ours.weight_hh_l0.grad.abs().max() == 0
    assert ours.weight_ih_l0.grad.abs().max() > 0


def test_swap_tensors(backend, x):
    """How ``module.to`` moves tensor subclasses."""
    theirs, ours = Case().modules()
    other = nn.Parameter(torch.zeros(24, 6))
    torch.utils.swap_tensors(ours.weight_hh_l0, other)
    with torch.no_grad():
        theirs.weight_hh_l0.zero_()
    assert_same(ours, theirs, x)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        ours.double(), theirs.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert_same(ours, theirs, x.double())


def test_inference_mode(backend, x):
    theirs, ours = Case(layers=2, bidirectional=True).modules()
    with torch.inference_mode():
        found = ours(x)
        again = ours(found[0].new_ones(5, 3, 4), found[1])
        expected = theirs(x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(again, theirs(torch.ones(5, 3, 4), expected[1]))
        assert fused_lstm.LSTM(4, 6)(x)[0].is_inference()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_features_made_in_inference_mode_can_be_trained_on(backend, x, bidirectional):
    """With batch_first, where nn.LSTM copies them; without, both refuse."""
    case = Case(bidirectional=bidirectional, batch_first=True)
    grads = []
    for module in case.modules():
        with torch.inference_mode():
            features = x.sin()
        grads.append(torch.autograd.grad(module(features)[0].sum(), [*module.parameters()]))
        with torch.no_grad():
            assert not module(features)[0].requires_grad
    torch.testing.assert_close(*grads)


def test_the_function_is_the_module(backend, x):
    theirs, _ = FULL.modules()
    hx = (torch.randn(4, 3, 2), torch.randn(4, 3, 6))
    found = fused_lstm.lstm(x, hx, theirs.all_weights, bidirectional=True)
    torch.testing.assert_close(found, theirs.eval()(x, hx))


def test_streaming_one_step_at_a_time(backend, device):
    """The state handed on step by step ends where one call over all steps ends."""
    theirs, ours = Case(layers=2, H=32, device=device).modules()
    x = torch.randn(20, 1, 4, device=device)
    with torch.no_grad():
        expected, expected_hx = theirs(x)
        hx, ys = None, []
        for step in x:
            y, hx = ours(step[None], hx)
            ys.append(y)
    torch.testing.assert_close(torch.cat(ys), expected)
    torch.testing.assert_close(hx, expected_hx)


def test_results_stay_when_the_next_call_is_made(backend, x):
    """Outputs own their memory."""
    _, ours = Case().modules()
    with torch.no_grad():
        y, (h_n, c_n) = ours(x)
        kept = [t.clone() for t in (y, h_n, c_n)]
        h_n.add_(0)
        ours(torch.randn(5, 3, 4), (h_n, c_n))
        torch.testing.assert_close([y, h_n, c_n], kept, rtol=0, atol=0)
        h_n.zero_()
        torch.testing.assert_close(y, kept[0], rtol=0, atol=0)


def test_a_missing_weight_is_named(backend):
    ours = fused_lstm.LSTM(4, 6)
    del ours.weight_hh_l0
    with pytest.raises(AttributeError, match="weight_hh_l0"):
        ours(torch.randn(5, 3, 4))
