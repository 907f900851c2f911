"""The CUDA kernels' own source, run on the host under the sanitizers, against float64.

`cuda_host/driver.cpp` runs one case per call on the emulator (`cuda_host/emulator.h`): one fiber
per CUDA thread, scheduled by a seed. The oracle is the definition of the LSTM, row by row, in
float64 with PyTorch's autograd.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
HOST = ROOT / "tests" / "cuda_host"
KERNELS = ROOT / "csrc" / "cuda"

TORCH_DTYPE = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
# Unit round-off of what a product's operands are kept in.
ROUND_OFF = {
    "fp32": 2.0**-24,
    "tf32": 2.0**-11,
    "bf16": 2.0**-9,
    "fp16": 2.0**-11,
    "fp64": 2.0**-53,
}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@dataclass(frozen=True)
class Case:
    """One run of the driver; `sizes` (live rows per step) makes the input packed."""

    plan: str
    dtype: str = "fp32"
    steps: int = 4
    batch: int = 3
    hidden: int = 5
    reverse: str = "0"
    sizes: tuple[int, ...] = ()
    state: bool = True
    grad_y: bool = True
    grad_state: bool = True
    pad: int = 0
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    options: dict[str, int] = field(default_factory=dict, hash=False)

    def live(self) -> list[int]:
        return list(self.sizes) if self.sizes else [self.batch] * self.steps

    def arguments(self) -> list[str]:
        given = {
            "plan": self.plan,
            "dtype": self.dtype,
            "T": len(self.live()),
            "B": self.batch,
            "H": self.hidden,
            "reverse": self.reverse,
            "state": int(self.state),
            "grad_y": int(self.grad_y),
            "grad_state": int(self.grad_state),
            "pad": self.pad,
            "seeds": ",".join(map(str, self.seeds)),
            **self.options,
        }
        if self.sizes:
            given["sizes"] = ",".join(map(str, self.sizes))
        return [f"{key}={value}" for key, value in given.items()]

    def __str__(self) -> str:
        return "-".join(self.arguments()[:6]) + ("-packed" if self.sizes else "")


def compile_driver(folder: Path, *flags: str) -> Path:
    program = folder / "driver"
    command = [
        "g++", "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
        "-Wno-clobbered", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
        "-DFUSED_LSTM_HOST_EMULATION", f"-I{HOST}", f"-I{KERNELS}", *flags,
        str(HOST / "emulator.cpp"), str(HOST / "driver.cpp"), "-o", str(program),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return program


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("cuda_host"))


Direction = dict[str, torch.Tensor]


def make_inputs(case: Case) -> tuple[torch.Tensor, list[Direction]]:
    """(grad_y [N, D*H], per direction its tensors), float64 values that the dtype can hold."""
    generator = torch.Generator().manual_seed(hash((case.hidden, case.batch)) % 1000)

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        return values.to(TORCH_DTYPE[case.dtype]).double()

    n, b, h = sum(case.live()), case.batch, case.hidden
    grad_y = random(n, len(case.reverse) * h)
    directions = [
        {
            "gates_x": random(n, 4 * h),
            "w_hh": random(4 * h, h, scale=h**-0.5),
            "h0": random(b, h),
            "c0": random(b, h),
            "grad_h_n": random(b, h),
            "grad_c_n": random(b, h),
        }
        for _ in case.reverse
    ]
    return grad_y, directions


def oracle(case: Case, grad_y: torch.Tensor, d: Direction, reverse: bool) -> Direction:
    """What the driver writes of one direction, in float64."""
    live = case.live()
    offset = np.concatenate([[0], np.cumsum(live)])
    h = case.hidden
    x = d["gates_x"].clone().requires_grad_()
    zero = torch.zeros(case.batch, h, dtype=torch.float64)
    h0 = (d["h0"] if case.state else zero).clone().requires_grad_()
    c0 = (d["c0"] if case.state else zero).clone().requires_grad_()
    n = len(x)
    y, gates, c_all = [None] * n, [None] * n, [None] * n
    h_n, c_n = [], []
    for row in range(case.batch):
        h_t, c_t = h0[row], c0[row]
        steps = [t for t, count in enumerate(live) if count > row]
        for t in reversed(steps) if reverse else steps:
            at = offset[t] + row
            i, f, g, o = (x[at] + d["w_hh"] @ h_t).chunk(4)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c_t = f * c_t + i * g
            h_t = o * c_t.tanh()
            y[at], gates[at], c_all[at] = h_t, torch.cat([i, f, g, o]), c_t
        h_n.append(h_t)
        c_n.append(c_t)
    result = {"y": y, "h_n": h_n, "c_n": c_n, "gates": gates, "c": c_all}
    result = {name: torch.stack(rows) for name, rows in result.items()}
    loss = (result["y"] * grad_y).sum() * case.grad_y
    if case.grad_state:
        loss = loss + (result["h_n"] * d["grad_h_n"]).sum() + (result["c_n"] * d["grad_c_n"]).sum()
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, [x, h0, c0], allow_unused=True)
        result.update(zip(("dgates", "dh0", "dc0"), gradients, strict=True))
    return {name: value.detach() for name, value in result.items()}


def run(program: Path, case: Case, folder: Path) -> tuple[list[Direction], str]:
    """(outputs per direction, message); the message is empty if the driver succeeded."""
    grad_y, directions = make_inputs(case)
    arrays = [grad_y] + [value for d in directions for value in d.values()]
    source, target = folder / "in.bin", folder / "out.bin"
    source.write_bytes(b"".join(a.contiguous().numpy().tobytes() for a in arrays))
    done = subprocess.run(
        [str(program), f"in={source}", f"out={target}", *case.arguments()],
        capture_output=True,
        text=True,
        env={"ASAN_OPTIONS": "detect_stack_use_after_return=0"},
        timeout=300,
    )
    if done.returncode != 0:
        return [], done.stderr or f"exit status {done.returncode}"
    values = torch.from_numpy(np.fromfile(target, dtype=np.float64))
    n, b, h = sum(case.live()), case.batch, case.hidden
    shapes = {
        "y": (n, h), "h_n": (b, h), "c_n": (b, h), "gates": (n, 4 * h), "c": (n, h),
        "dgates": (n, 4 * h), "dh0": (b, h), "dc0": (b, h),
    }  # fmt: skip
    outputs, at = [], 0
    for names in [list(shapes)] * len(case.reverse) + [["y", "h_n", "c_n"]] * len(case.reverse):
        outputs.append({})
        for name in names:
            count = int(np.prod(shapes[name]))
            outputs[-1][name] = values[at : at + count].reshape(shapes[name])
            at += count
    assert at == len(values)
    return outputs, ""


def check(program: Path, case: Case, folder: Path) -> None:
    outputs, message = run(program, case, folder)
    assert not message, message[-3000:]
    grad_y, directions = make_inputs(case)
    h = case.hidden
    for index, d in enumerate(directions):
        expected = oracle(
            case, grad_y[:, index * h : (index + 1) * h], d, case.reverse[index] == "1"
        )
        for name, value in expected.items():
            # Each step rounds h (or the gate gradients) once; the errors of the steps add up, and
            # the sums of the product carry about sqrt(4H) of them.
            factor = len(case.live()) * max(1.0, (4 * h) ** 0.5)
            bound = factor * ROUND_OFF[case.dtype] * max(1.0, float(value.abs().max()))
            error = float((outputs[index][name] - value).abs().max())
            assert error <= bound, f"{name}: error {error:.3g}, bound {bound:.3g}"
        unsaved = outputs[len(directions) + index]
        for name in ("y", "h_n", "c_n"):
            assert torch.equal(unsaved[name], outputs[index][name]), (
                f"{name} differs without saving"
            )


DTYPES = list(TORCH_DTYPE)
PACKED = (5, 5, 3, 2, 2, 1)
Make = Callable[..., Case]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("hidden", [1, 17, 64])
def test_gate_step(driver: Path, tmp_path: Path, dtype: str, hidden: int) -> None:
    check(driver, Case("gate_step", dtype, hidden=hidden, pad=3, seeds=(0, 1)), tmp_path)


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


@pytest.mark.parametrize(
    "missing", [{"state": False}, {"grad_y": False}, {"grad_state": False}], ids=str
)
@pytest.mark.parametrize("plan", ["gate_step", "block"])
def test_absent_inputs_are_zeros(
    driver: Path, tmp_path: Path, plan: str, missing: dict[str, bool]
) -> None:
    check(driver, Case(plan, batch=18, hidden=9, seeds=(0, 1), **missing), tmp_path)


SLICED = ["grid", "cluster"]


@pytest.mark.parametrize("plan", SLICED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 17, 33])
def test_sliced(driver: Path, tmp_path: Path, plan: str, dtype: str, hidden: int) -> None:
    options = {"k_warps": 4, "groups": 1}
    check(driver, Case(plan, dtype, hidden=hidden, pad=3, options=options), tmp_path)


@pytest.mark.parametrize("plan", SLICED)
@pytest.mark.parametrize("dtype", ["bf16", "tf32"])
@pytest.mark.parametrize(
    "options", [{"reg_tiles": 2, "k_warps": 4}, {"unit_tiles": 2, "k_warps": 8}]
)
def test_sliced_shapes(
    driver: Path, tmp_path: Path, plan: str, dtype: str, options: dict[str, int]
) -> None:
    """More row tiles than groups, weights in registers or two unit tiles per block."""
    case = Case(plan, dtype, batch=49, hidden=49, steps=3, options={"groups": 2, **options})
    check(driver, case, tmp_path)


@pytest.mark.parametrize("plan", SLICED)
@pytest.mark.parametrize("reverse", ["0", "1", "01"])
def test_sliced_packed(driver: Path, tmp_path: Path, plan: str, reverse: str) -> None:
    sizes = (35, 34, 17, 16, 16, 3, 1)
    case = Case(
        plan, "bf16", batch=35, sizes=sizes, reverse=reverse, hidden=17,
        options={"k_warps": 4, "groups": 2},
    )  # fmt: skip
    check(driver, case, tmp_path)
