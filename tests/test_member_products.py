"""Gradients of shared weights for each member: the op of the CPU, and what other devices have."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from cases import DTYPE_IDS, DTYPES
from oracle import assert_as_accurate
from torch import Tensor

from fused_lstm import per_sample

# Rows of a member, members, columns of the left and of each right: of one and odd ones; of every
# loop's second turn (256 rows, 512 columns, panels of the right); of members that are cut.
SIZES = {
    "one of each": (1, 1, 1, [1]),
    "odd": (5, 7, 33, [3, 17]),
    "rows": (259, 3, 20, [9]),
    "columns": (6, 5, 518, [5]),
    "panels": (4, 3, 7, [130, 70]),
    "all": (515, 2, 600, [65, 1]),
    "many members": (3, 41, 8, [8]),
    "no right": (300, 2, 70, []),
    "no rows": (0, 2, 5, [3]),
}


def operands(rows: int, members: int, columns: int, right: list[int], dtype: torch.dtype):
    left = torch.randn(rows * members, columns, dtype=torch.float64).to(dtype)
    return left, [torch.randn(len(left), n, dtype=torch.float64).to(dtype) for n in right], members


def exact(left: Tensor, right: list[Tensor], members: int) -> list[Tensor]:
    """One member and one product after the other."""
    of_members = [left.double()[v::members] for v in range(members)]
    products = [
        torch.stack([of.T @ rows.double()[v::members] for v, of in enumerate(of_members)])
        for rows in right
    ]
    return [*products, torch.stack([of.sum(0) for of in of_members])]


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("size", SIZES)
def test_products_of_every_member(isa, size, dtype):
    arguments = operands(*SIZES[size], dtype)
    found = per_sample.member_products(*arguments)
    batched = per_sample.batched_products(*arguments)
    for ours, theirs, expected in zip(found, batched, exact(*arguments), strict=True):
        assert ours.shape == theirs.shape == expected.shape
        assert_as_accurate(ours, theirs, expected, "gradient")


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_threads_change_no_bit(extension, dtype):
    """They cut the columns of few members in more or fewer pieces, or do without a team."""
    for size in ("all", "many members", "one of each"):
        arguments = operands(*SIZES[size], dtype)
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(per_sample.member_products(*arguments))
        for one, *others in zip(*found, strict=True):
            assert all(torch.equal(one, other) for other in others), size


@pytest.mark.core
def test_rows_that_lie_anywhere(extension):
    left, right, members = operands(*SIZES["odd"], torch.float32)
    strided = [t.T.contiguous().T for t in (left, *right)]
    assert not any(t.is_contiguous() for t in strided)
    found = per_sample.member_products(strided[0], strided[1:], members)
    expected = per_sample.member_products(left, right, members)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.core
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_what_is_not_finite_stays_with_its_member(extension, value):
    left, right, members = operands(*SIZES["odd"], torch.float32)
    left[2 * members + 3, 5] = value  # of member 3
    for t in per_sample.member_products(left, right, members):
        bad = ~t.isfinite()
        assert bad[3, 5].all()
        assert bad.sum() == bad[3, 5].numel()


@pytest.mark.core
def test_denormal_numbers_count_as_zero(extension):
    """As in the kernels that the gates' gradients come from."""
    left, right, members = operands(*SIZES["odd"], torch.float32)
    for t in per_sample.member_products(left * 1e-40, right, members):
        assert not t.any()


@pytest.mark.core
def test_shapes_without_values(extension):
    op = torch.ops.fused_lstm._member_products.default
    for size, dtype in product(("odd", "no right", "no rows"), (torch.float32, torch.bfloat16)):
        torch.library.opcheck(op, operands(*SIZES[size], dtype))


@pytest.mark.core
def test_what_does_not_fit_is_refused(extension):
    left, right, members = operands(*SIZES["odd"], torch.float32)
    for arguments, words in (
        ((left[0], right, members), "expected left of two dimensions"),
        ((left, right, members + 1), "expected rows of 8 members, got 35"),
        ((left, right, 0), "expected rows of 0 members"),
        ((left, [right[0][1:]], members), "expected right of 35 rows"),
        ((left, [right[0].double()], members), "expected right of 35 rows of Float"),
    ):
        with pytest.raises(RuntimeError, match=words):
            per_sample.member_products(*arguments)
