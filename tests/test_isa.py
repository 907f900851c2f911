"""Every instruction set that the build holds and this machine has computes the same."""

import pytest
from cases import DTYPE_IDS, DTYPES, Case, check


@pytest.mark.core
def test_the_cap_holds(isa, extension):
    assert extension.cpu_isa() == isa


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("H", [1, 17, 64, 100])
@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_values_and_gradients(isa, H, kind, dtype):
    check(Case(T=4, B=9, I=11, H=H, kind=kind, bidirectional=True, dtype=dtype))
    check(Case(T=1, B=1, I=11, H=H, dtype=dtype))
