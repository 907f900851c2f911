"""bfloat16 by oneDNN's micro-kernel: AMX where there is one, by name on any AVX512-BF16."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from cases import Case, check, run
from test_cpu_forced_plans import KINDS, SPLITS, everything, fits, force  # noqa: F401

import fused_lstm

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def amx(extension):
    """Runs the test on the path for the matrix unit."""
    before = extension.cpu_isa()
    extension.set_cpu_isa("avx512_amx")
    if extension.cpu_isa() != "avx512_amx":
        pytest.skip(f"{before} has no products of bfloat16 by oneDNN")
    yield
    extension.set_cpu_isa(before)


@pytest.fixture
def rounded():
    """float32 is multiplied as bfloat16."""
    setting = torch.backends.mkldnn.rnn
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    yield
    setting.fp32_precision = before


# One row of a tile to several blocks with a rest; 4 rows and fewer have kernels of their own.
@pytest.mark.core
@pytest.mark.parametrize("B", [1, 4, 5, 6, 7, 8, 9, 16, 17, 31, 32, 33, 64, 65, 70])
def test_every_batch(B):
    check(Case(T=3, B=B, I=11, H=17, dtype=BF16))


# Depths of one, odd, above and below a block of them, and units that fill no panel.
@pytest.mark.core
@pytest.mark.parametrize("I", [1, 2, 31, 33, 64, 257])
@pytest.mark.parametrize("H", [1, 3, 16, 65, 130])
def test_every_depth(I, H):  # noqa: E741
    check(Case(T=3, B=9, I=I, H=H, dtype=BF16))


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind):
    check(KINDS[kind].with_(dtype=BF16, B=41))


def test_a_depth_of_several_blocks():
    check(Case(T=2, B=40, I=530, H=515, dtype=BF16))


def test_its_arithmetic_is_its_own(extension, rounded):
    """It sums in another order than the other kernels: otherwise nothing here tests it.

    Sums of float32 show it, which bfloat16 would round away.
    """
    case = Case(T=3, B=40, I=300, H=200)
    found = everything(case)
    extension.set_cpu_isa("avx512_bf16")
    assert any(not torch.equal(a, b) for a, b in zip(found, everything(case), strict=True))


@pytest.mark.parametrize("dtype", [BF16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["dense", "packed", "packed, projected"])
def test_the_same_bits_whoever_computes_them(kind, dtype, force, rounded):  # noqa: F811
    case, expected = KINDS[kind].with_(dtype=dtype), None
    for split in SPLITS:
        for fold in (0, 1):
            if fits(split, case):
                force(f"{split} fold={fold} chunk=3 algorithm=panels")
                found = everything(case)
                expected = expected or found
                for ours, first in zip(found, expected, strict=True):
                    assert torch.equal(ours, first), split


@pytest.mark.core
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_what_is_not_finite_stays_in_its_row(value):
    case = Case(T=4, B=40, I=33, H=50, dtype=BF16)
    theirs, ours = case.modules()
    x = torch.randn(4, 40, 33, dtype=BF16)
    x[1, 7, 32] = value
    with torch.no_grad():
        for module in (theirs, ours):  # one weight in 256 is zero, which makes NaN of infinity
            module.weight_ih_l0[:, 32] = 0.1
        y, expected = ours(x)[0], theirs(x)[0]
    assert torch.equal(y.isnan(), expected.isnan())
    assert y[1:, 7].isnan().any() == (value != value)
    assert not y[:, torch.arange(40) != 7].isnan().any()
    torch.testing.assert_close(y, expected, rtol=0, atol=0.02, equal_nan=True)


@pytest.mark.core
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
def test_what_is_not_finite_stays_in_its_unit(name, value):
    """Of one step: in the next its output meets every weight."""
    case = Case(T=1, B=33, I=33, H=50, dtype=BF16)
    theirs, ours = case.modules()
    hx = case.state()
    with torch.no_grad():
        for module in (theirs, ours):
            getattr(module, name)[100 + 20, 32] = value  # the cell gate of unit 20
        x = torch.randn(1, 33, 33, dtype=BF16)
        y, expected = ours(x, hx)[0], theirs(x, hx)[0]
    assert torch.equal(y.isnan(), expected.isnan())
    assert y[..., 20].isnan().all() == (value != value)
    torch.testing.assert_close(y, expected, rtol=0, atol=0.02, equal_nan=True)


def test_threads_and_other_users_of_the_tiles():
    """Calls from several threads at once, among PyTorch's own products of bfloat16."""
    case = Case(T=5, B=24, I=40, H=70, dtype=BF16)
    _, ours = case.modules()
    linear = torch.nn.Linear(70, 70, dtype=BF16)
    x, a = torch.randn(5, 24, 40, dtype=BF16), torch.randn(64, 70, dtype=BF16)
    with torch.no_grad():
        expected, product = ours(x)[0], linear(a)
    wrong = []

    def work():
        for _ in range(20):
            with torch.no_grad():
                for found, first in ((ours(x)[0], expected), (linear(a), product)):
                    if not torch.equal(found, first):
                        wrong.append(found)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork():
    _, ours = Case(T=5, B=24, I=40, H=70, dtype=BF16).modules()
    x = torch.randn(5, 24, 40, dtype=BF16)
    with torch.no_grad():
        expected = ours(x)[0]
    child = os.fork()
    if child == 0:
        with torch.no_grad():
            os._exit(0 if torch.equal(ours(x)[0], expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_cell_and_layers():
    theirs, ours = Case(I=30, H=40, layers=2, bidirectional=True, dtype=BF16).modules()
    x = torch.randn(4, 33, 30, dtype=BF16)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=0, atol=0.02)
    cell = fused_lstm.LSTMCell(30, 40, dtype=BF16)
    hs = torch.nn.LSTMCell(30, 40, dtype=BF16)
    hs.load_state_dict(cell.state_dict())
    for found, expected in zip(cell(x[0]), hs(x[0]), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_overlapping_and_strided_rows():
    """Rows that the micro-kernel cannot read where they lie, or may."""
    case = Case(T=3, B=8, I=6, H=20, dtype=BF16)
    _, ours = case.modules()
    hx = case.state()
    for x in (
        torch.randn(3, 8, 12, dtype=BF16)[..., ::2],
        torch.randn(3, 8, 12, dtype=BF16)[..., 3:9],
        torch.randn(1, 1, 6, dtype=BF16).expand(3, 8, 6),
        torch.randn(8, 3, 6, dtype=BF16).transpose(0, 1),
        torch.randn(40, dtype=BF16).as_strided((3, 8, 6), (8, 1, 1)),
    ):
        found = run(ours, case, list(x.unbind(1)), hx)[1]
        expected = ours(x, hx)[1][0]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_input_without_features(force, rounded, precision):  # noqa: F811
    """Its projection by itself is a sum of nothing: what lay there before is not it."""
    force("fold=0 chunk=3")
    dtype = BF16 if precision == "ieee" else torch.float32
    x, hidden = torch.zeros(7, 33, 0, dtype=dtype), 40
    weights = [torch.randn(4 * hidden, n, dtype=dtype) * 0.2 for n in (0, hidden)]
    biases = [torch.randn(4 * hidden, dtype=dtype) for _ in range(2)]
    layer = torch.ops.fused_lstm.lstm_layer
    y = layer(x, None, None, None, [*weights, *biases], [False], False)[0]
    one = torch.zeros(7, 33, 2, dtype=dtype)
    wider = [torch.ones(4 * hidden, 2, dtype=dtype), weights[1]]
    expected = layer(one, None, None, None, [*wider, *biases], [False], False)[0]
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
