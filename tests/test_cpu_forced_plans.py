"""Every plan of the CPU computes the same: the same bits, whoever computes them and when.

The sizes reach every loop's second turn: several panels of every product on the widest vectors,
several row tiles, several chunks of steps with one left over.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import Case, check, run

import fused_lstm
from fused_lstm import _ops

pytestmark = pytest.mark.skipif(_ops.extension is None, reason="the extension is not built")

# Two panels of 64 columns and a rest, in both passes, whatever the instruction set.
BASE = Case(T=7, B=13, I=70, H=136, bidirectional=True)
KINDS = {
    "dense": BASE,
    "packed": BASE.with_(kind="packed"),
    "projected": BASE.with_(P=132),
    "packed, projected": BASE.with_(P=132, kind="packed"),
    "without states and biases": BASE.with_(hx=False, bias=False, bidirectional=False),
    "packed without states": BASE.with_(hx=False, kind="packed"),
}
# Every split of up to 8 threads with at most 2 of a kind, and an odd one of rows.
SPLITS = [
    f"directions={d} rows={r} units={u}"
    for d, r, u in [*itertools.product((1, 2), repeat=3), (1, 3, 1), (1, 1, 3)]
]
HOW = ["fold=0 chunk=1", "fold=0 chunk=3", "fold=0 chunk=7", "fold=1 chunk=3"]
HOW += ["fold=0 chunk=3 in_place=1"]
PLANS = [f"{split} {how}" for split in SPLITS for how in HOW]


@pytest.fixture
def force():
    """Asks for a plan until the test ends, with threads enough for it."""

    def ask(plan: str) -> None:
        _ops.extension.request_cpu_plan(plan)

    torch.set_num_threads(8)
    yield ask
    _ops.extension.request_cpu_plan("")


def fits(plan: str, case: Case) -> bool:
    return case.bidirectional or "directions=2" not in plan


def matches(ran: dict, plan: str, but: str) -> bool:
    wanted = dict(word.split("=") for word in plan.split())
    return all(str(int(ran[name])) == value for name, value in wanted.items() if name != but)


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", PLANS)
def test_values_and_gradients(plan, kind, force):
    case = KINDS[kind].with_(dtype=torch.float64)
    if not fits(plan, case):
        pytest.skip("one direction")
    force(plan)
    check(case)
    assert matches(_ops.extension.last_cpu_plan(), plan, but="in_place")
    assert matches(_ops.extension.last_cpu_plan(backward=True), plan, but="fold")


def everything(case: Case) -> list[torch.Tensor]:
    """All outputs and all gradients of one layer on one input, the same for every call."""
    torch.manual_seed(5)
    _, ours = case.modules()
    sequences = [s.requires_grad_() for s in case.sequences()]
    hx = [t.requires_grad_() for t in case.state()]
    ys, h_n, c_n = run(ours, case, sequences, hx)
    outputs = [torch.cat(list(ys)), h_n, c_n]
    grads = [torch.randn_like(t) for t in outputs]
    states = hx if case.hx else []
    found = torch.autograd.grad(outputs, [*sequences, *states, *ours.parameters()], grads)
    return [t.detach() for t in (*outputs, *found)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_the_same_bits_whoever_computes_them(kind, dtype, chunk, force):
    case = KINDS[kind].with_(dtype=dtype)
    expected = None
    in_place = () if dtype == torch.bfloat16 else ("fold=0 in_place=1",)
    for split, how in itertools.product(SPLITS, ("fold=0", "fold=1", *in_place)):
        plan = f"{split} {how} chunk={chunk}"
        if not fits(plan, case):
            continue
        force(plan)
        found = everything(case)
        expected = expected or found
        for ours, first in zip(found, expected, strict=True):
            assert torch.equal(ours, first), plan


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("B", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_weights_read_as_they_lie(kind, B, dtype, force):
    """`dot`, several steps and row tiles of it; the planner takes it for few rows only."""
    case = Case(T=3, B=B, I=21, H=70, kind=kind, bidirectional=True, dtype=dtype)
    for split in ("rows=1 units=1", "rows=1 units=2"):
        force(f"algorithm=dot {split}")
        check(case, backward=False)
        assert _ops.extension.last_cpu_plan()["algorithm"] == "dot"


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_of_weights_read_as_they_lie(dtype, force):
    """Rows fall into other tiles, of another height, when the batch is split."""
    case = Case(T=3, B=9, I=21, H=136, dtype=dtype)
    found = []
    for split in SPLITS:
        if fits(split, case):
            force(f"algorithm=dot {split}")
            found.append(everything(case))
    for ours in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ours, found[0], strict=True))


@pytest.mark.core
@pytest.mark.parametrize("units", [1, 2, 3])
def test_one_step_packs_late(units, force):
    force(f"algorithm=panels rows=1 units={units}")
    check(Case(T=1, B=9, I=21, H=136, dtype=torch.float64))
    check(Case(T=1, B=9, I=21, H=136, P=132, bidirectional=True, dtype=torch.float64))
    case = Case(T=1, B=9, I=21, H=136)
    late = everything(case)
    force("algorithm=panels rows=3 units=1")
    assert all(torch.equal(a, b) for a, b in zip(late, everything(case), strict=True))


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("B", [1, 2, 4, 6, 9])
def test_weights_read_in_place(B, dtype, force):
    """Row tiles of every height, columns of more than one block and not of whole vectors, with
    rows that have places of their own."""
    case = Case(T=1, B=B, I=21, H=267, P=133, bidirectional=True, dtype=dtype)
    for plan in ("rows=1 units=1 in_place=1", "rows=1 units=2 in_place=1"):
        force(plan)
        check(case)
        assert _ops.extension.last_cpu_plan(backward=True)["in_place"]
    layer = fused_lstm.LSTM(21, 267, dtype=dtype)
    x = torch.randn(3, B, 21, dtype=dtype, requires_grad=True)
    lengths = torch.arange(B) % 4
    found = []
    for plan in ("in_place=0", "in_place=1"):
        force(plan)
        y, _ = layer(x, lengths=lengths)
        found.append(torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_pairs_are_not_read_in_place(force):
    if _ops.extension.cpu_machine("bfloat16")["pair"] != 2:
        pytest.skip("bfloat16 is computed in float32")
    force("in_place=1")
    layer = fused_lstm.LSTM(4, 8, dtype=torch.bfloat16)
    y, _ = layer(torch.randn(3, 2, 4, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="in_place=1 is for kernels that do not multiply pairs"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(40, 1, 20, 200), (9, 40, 33, 70), (1, 30, 64, 64)], ids=str)
def test_the_same_bits_with_any_number_of_threads(shape, dtype, extension):
    """With the plans that are chosen, which differ."""
    T, B, I, H = shape  # noqa: E741
    for kind in ("dense", "packed"):
        case = Case(T=T, B=B, I=I, H=H, kind=kind, bidirectional=True, dtype=dtype)
        found = []
        for threads in (1, 2, 3, 4, 7):
            torch.set_num_threads(threads)
            found.append(everything(case))
        for ours in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(ours, found[0], strict=True))


def test_the_variable_asks_for_a_plan(extension, monkeypatch):
    """FUSED_LSTM_CPU_PLAN and FUSED_LSTM_ISA are read once, so in a process of their own."""
    import os
    import subprocess
    import sys

    code = (
        "import torch, fused_lstm\n"
        "from fused_lstm import _ops\n"
        "torch.set_num_threads(2)\n"
        "fused_lstm.LSTM(3, 40)(torch.ones(5, 4, 3))\n"
        "ran = _ops.extension.last_cpu_plan()\n"
        "print(ran['rows'], ran['units'], ran['chunk'], _ops.extension.cpu_isa())\n"
    )

    def said(**variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    plan = "algorithm=panels rows=2 units=1 chunk=2 fold=0"
    result = said(FUSED_LSTM_CPU_PLAN=plan, FUSED_LSTM_ISA="baseline")
    assert result.stdout.split() == ["2", "1", "2", "baseline"], result.stderr
    assert "FUSED_LSTM_CPU_PLAN: expected a plan such as" in said(FUSED_LSTM_CPU_PLAN="x=1").stderr
    assert "does not fit: rows=9" in said(FUSED_LSTM_CPU_PLAN="rows=9").stderr
    wrong = said(FUSED_LSTM_ISA="avx9").stderr
    assert "FUSED_LSTM_ISA: expected one of baseline" in wrong
    assert "got 'avx9'" in wrong


@pytest.mark.parametrize("algorithm", ["panels", "dot"])
def test_infinite_weights_are_multiplied_alike_by_every_team(force, algorithm):
    """By the zeros of a row that begins while another goes on: NaN, whoever has which of them."""
    x, sizes = torch.randn(3, 8), torch.tensor([2, 1])
    weights = [torch.randn(4 * 64, n) * 0.1 for n in (8, 64)]
    weights[1][5, 3] = float("inf")
    found = []
    for rows in (1, 2):
        force(f"algorithm={algorithm} rows={rows} units=1")
        found += torch.ops.fused_lstm.lstm_layer(x, sizes, None, None, weights, [True], False)[:1]
    assert found[0].isnan().any()
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)
