"""The CUDA kernels' own source, run on the host under the sanitizers, against float64.

One fiber per CUDA thread, scheduled by a seed: see cuda_driver.py.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_driver import TORCH_DTYPE, Case, check, compile_driver, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("cuda_host"))


@pytest.mark.parametrize(
    ("dtype", "bound"), [("fp64", 4 * 2.0**-53), ("fp32", 4 * 2.0**-24), ("bf16", 3e-6)]
)
def test_activations(driver: Path, tmp_path: Path, dtype: str, bound: float) -> None:
    """Relative errors of sigmoid and tanh, for tensor cores the faster ones; exact far out."""
    magnitudes = 2.0 ** torch.arange(-40, 4.3, 0.01, dtype=torch.float64)
    x = torch.cat([magnitudes, -magnitudes]).float().double()
    far = torch.tensor([torch.inf, 1e30, 100.0, 0.0, -1e30, -torch.inf, torch.nan]).double()
    source, target = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(torch.cat([x, far]).numpy().tobytes())
    command = [str(driver), f"in={source}", f"out={target}", "plan=activations", f"dtype={dtype}"]
    subprocess.run(command, check=True, env={"ASAN_OPTIONS": "detect_stack_use_after_return=0"})
    ours = torch.from_numpy(np.fromfile(target, dtype=np.float64)).view(-1, 2)
    exact = torch.stack([x.sigmoid(), x.tanh()], 1)
    assert float(((ours[: len(x)] - exact) / exact).abs().max()) <= bound
    nan = torch.nan
    rows = [[1, 1], [1, 1], [1, 1], [0.5, 0], [0, -1], [0, -1], [nan, nan]]
    assert torch.equal(ours[len(x) :].nan_to_num(7), torch.tensor(rows).double().nan_to_num(7))


DTYPES = list(TORCH_DTYPE)
PACKED = (5, 5, 3, 2, 2, 1)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize(("hidden", "pad"), [(1, 3), (17, 3), (64, 3), (64, 0), (300, 4)], ids=str)
def test_gate_step(driver: Path, tmp_path: Path, dtype: str, hidden: int, pad: int) -> None:
    """Element by element, and by 16 bytes where strides allow it."""
    check(driver, Case("gate_step", dtype, hidden=hidden, pad=pad, seeds=(0, 1)), tmp_path)


def test_gate_step_packed(driver: Path, tmp_path: Path) -> None:
    case = Case("gate_step", batch=5, sizes=PACKED, reverse="01", hidden=7, seeds=(0,))
    check(driver, case, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 3, 8, 17, 33])
def test_block(driver: Path, tmp_path: Path, dtype: str, hidden: int) -> None:
    check(driver, Case("block", dtype, hidden=hidden, pad=3), tmp_path)


@pytest.mark.parametrize("dtype", ["bf16", "tf32"])
def test_block_weights_in_registers(driver: Path, tmp_path: Path, dtype: str) -> None:
    check(driver, Case("block", dtype, hidden=49, options={"reg_tiles": 2}), tmp_path)


@pytest.mark.parametrize("reverse", ["0", "1", "01"])
def test_block_packed(driver: Path, tmp_path: Path, reverse: str) -> None:
    sizes = (19, 18, 17, 16, 16, 3, 1)
    case = Case("block", "bf16", batch=19, sizes=sizes, reverse=reverse, hidden=17)
    check(driver, case, tmp_path)


SLICED = ["grid", "cluster"]
ONE_TILE = {"unit_tiles": 1}


@pytest.mark.parametrize("plan", SLICED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 17, 33])
def test_sliced(driver: Path, tmp_path: Path, plan: str, dtype: str, hidden: int) -> None:
    options = {"groups": 1, **ONE_TILE}
    check(driver, Case(plan, dtype, hidden=hidden, pad=3, options=options), tmp_path)


@pytest.mark.parametrize("plan", SLICED)
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("bf16", {"reg_tiles": 2, **ONE_TILE}),
        ("tf32", {"reg_tiles": 2, **ONE_TILE}),
        ("bf16", {"unit_tiles": 2, "reg_tiles": 1, "threads": 256}),
        ("bf16", {"unit_tiles": 4, "unit_parts": 2, "reg_tiles": 1, "threads": 256}),
        ("fp32", {"unit_tiles": 4, "threads": 256}),
        ("fp32", {"unit_tiles": 1, "threads": 160}),
    ],
    ids=str,
)
def test_sliced_shapes(
    driver: Path, tmp_path: Path, plan: str, dtype: str, options: dict[str, int]
) -> None:
    """More row tiles than groups, weights in registers, units shared out among the warps, more
    cells or fewer than threads."""
    hidden = {1: 33, 2: 49, 4: 81}[options["unit_tiles"]]
    case = Case(plan, dtype, batch=49, hidden=hidden, steps=3, options={"groups": 2, **options})
    check(driver, replace(case, seeds=(2, 5, 7)), tmp_path)


@pytest.mark.parametrize("plan", SLICED)
def test_sliced_more_groups_than_row_tiles(driver: Path, tmp_path: Path, plan: str) -> None:
    check(driver, Case(plan, "bf16", hidden=17, options={"groups": 2, **ONE_TILE}), tmp_path)


@pytest.mark.parametrize("plan", SLICED)
@pytest.mark.parametrize("reverse", ["0", "1", "01"])
def test_sliced_packed(driver: Path, tmp_path: Path, plan: str, reverse: str) -> None:
    sizes = (35, 34, 17, 16, 16, 3, 1)
    options = {"groups": 2, **ONE_TILE}
    case = Case(plan, "bf16", batch=35, sizes=sizes, reverse=reverse, hidden=17, options=options)
    check(driver, case, tmp_path)


def options_of(plan: str) -> dict[str, int]:
    return {"groups": 1, **ONE_TILE} if plan in SLICED else {}


@pytest.mark.parametrize(
    "missing",
    [{"bias": False}, {"state": False}, {"grad_y": False}, {"grad_state": False}],
    ids=str,
)
@pytest.mark.parametrize("plan", ["gate_step", "block", *SLICED])
def test_absent_inputs_are_zeros(
    driver: Path, tmp_path: Path, plan: str, missing: dict[str, bool]
) -> None:
    case = Case(plan, batch=18, hidden=9, seeds=(0, 1), options=options_of(plan), **missing)
    check(driver, case, tmp_path)


@pytest.mark.parametrize("plan", SLICED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_of_all_bits_set_is_a_value(
    driver: Path, tmp_path: Path, plan: str, dtype: str
) -> None:
    """In exchange memory those bits mean that nothing has been stored yet."""
    case = Case(plan, dtype, hidden=17, nan=True, options={"groups": 1, **ONE_TILE})
    outputs, _, message = run(driver, case, tmp_path)
    assert not message, message[-3000:]
    for name in ("h_n", "c_n", "dh0", "dc0"):
        nan = outputs[0][name].isnan()
        assert nan[0].all(), name
        assert not nan[1:].any(), name


@pytest.mark.parametrize("plan", ["block", *SLICED])
def test_every_barrier_is_needed(driver: Path, tmp_path: Path, plan: str) -> None:
    """Without any one of its barriers or fences, a plan gives a wrong result, hangs, or has stores
    that are in no order.

    So many steps that the ring of an exchange is used twice.
    """
    options = {**options_of(plan), "reg_tiles": 2}
    steps, batch, hidden = {"block": (9, 17, 49), "grid": (19, 3, 33), "cluster": (10, 3, 33)}[plan]
    case = Case(plan, "bf16", steps, batch, hidden, options=options, seeds=tuple(range(8)))
    _, sites, message = run(driver, case, tmp_path)
    assert sites, message[-3000:]
    in_exchange = sum("exchange.cuh" in site for site in sites)
    assert in_exchange == {"block": 0, "grid": 2, "cluster": 3}[plan]
    symptoms = ("another result", "deadlock", "has ended", "in no order")
    for number, site in enumerate(sites):
        without = replace(case, options={**options, "omit": number})
        _, _, message = run(driver, without, tmp_path)
        assert any(text in message for text in symptoms), f"{site}: {message[-500:]}"


@pytest.mark.parametrize("half", ["release", "acquire"])
@pytest.mark.parametrize("plan", SLICED)
def test_both_halves_of_a_fence_are_needed(
    driver: Path, tmp_path: Path, plan: str, half: str
) -> None:
    """Release: what was stored before comes before what is stored after. Acquire: what is loaded
    after is no older than what was loaded before."""
    steps, options = {"grid": 19, "cluster": 10}[plan], {**options_of(plan), "reg_tiles": 2}
    case = Case(plan, "bf16", steps, 3, 33, options=options, seeds=tuple(range(8)))
    _, _, message = run(driver, replace(case, options={**options, f"no_{half}": 1}), tmp_path)
    assert "another result" in message or "in no order" in message, message[-500:]
