"""Every option, dtype and kind of input gives what nn.LSTM gives, as accurately."""

import itertools

import pytest
import torch
from cases import DTYPE_IDS, DTYPES, Case, check

OPTIONS = list(itertools.product([1, 2], [True, False], [False, True], [0, 3], [True, False]))
KINDS = ["dense", "batch_first", "packed", "unbatched"]


def all_options(*of_one_layer):
    """Every layer option with every kind of input; marks for those of one layer."""
    values = [pytest.param(*o, marks=of_one_layer if o[0] == 1 else ()) for o in OPTIONS]
    options = pytest.mark.parametrize(("layers", "bias", "bidirectional", "P", "hx"), values)
    return lambda function: pytest.mark.parametrize("kind", KINDS)(options(function))


def case_of(kind, **options):
    if kind == "batch_first":
        return Case(batch_first=True, **options)
    return Case(kind=kind, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@all_options(pytest.mark.core)  # layers are stacked in Python, which makes no other calls of the op
def test_options(extension, device, layers, bias, bidirectional, P, hx, kind, dtype):
    options = dict(layers=layers, bias=bias, bidirectional=bidirectional, P=P, hx=hx)
    check(case_of(kind, dtype=dtype, device=device, **options))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
@all_options()
def test_options_on_the_fallback(fallback, device, layers, bias, bidirectional, P, hx, kind, dtype):
    """One code for all dtypes: one without and one with float32 sums stand for them."""
    options = dict(layers=layers, bias=bias, bidirectional=bidirectional, P=P, hx=hx)
    check(case_of(kind, dtype=dtype, device=device, **options))


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("B", [1, 7])
@pytest.mark.parametrize("T", [1, 9])
@pytest.mark.parametrize("H", [1, 3, 17, 64, 65])
def test_odd_hidden_sizes(extension, device, H, T, B, dtype):
    check(Case(T=T, B=B, I=5, H=H, dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(("H", "I"), [(256, 1), (1000, 3), (96, 1000)])
def test_large_hidden_and_input_sizes(extension, device, H, I, dtype):  # noqa: E741
    check(Case(T=2, B=3, I=I, H=H, dtype=dtype, device=device))


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("P", [1, 2, 16, 63])
def test_odd_projections(extension, device, P, dtype):
    check(Case(T=4, B=5, I=7, H=64, P=P, bidirectional=True, dtype=dtype, device=device))


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_many_rows(extension, device, kind, dtype):
    """Enough rows for every thread, and a rest that fills no tile."""
    check(Case(T=12, B=37, I=19, H=33, bidirectional=True, kind=kind, dtype=dtype, device=device))


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_everything_is_one(backend, device, dtype):
    check(Case(T=1, B=1, I=1, H=1, dtype=dtype, device=device))
    check(Case(T=1, B=1, I=1, H=1, hx=False, kind="packed", dtype=dtype, device=device))


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_large_activations_saturate(extension, device, dtype):
    """Gates far outside the linear range of sigmoid and tanh."""
    check(Case(T=6, B=4, I=8, H=16, scale=50, dtype=dtype, device=device))


def test_without_grad_the_values_are_the_same(backend, device):
    """The op that saves nothing gives, bit for bit, what the op that saves everything gives."""
    for case in (Case(), Case(kind="packed", bidirectional=True, P=2), Case(T=1, B=1, H=128)):
        _, ours = case.with_(device=device).modules()
        x = case.with_(device=device).pack(case.with_(device=device).sequences())
        recorded = ours(x)
        with torch.no_grad():
            plain = ours(x)
        torch.testing.assert_close(plain, recorded, rtol=0, atol=0)
