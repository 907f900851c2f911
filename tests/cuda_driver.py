"""Builds and runs `cuda_host/driver.cpp`, which runs one case per call on the emulator
(`cuda_host/emulator.h`), and holds its results against float64.

The oracle is the definition of the LSTM, row by row, in float64 with PyTorch's autograd.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
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
# Bits of the significand of what is stored (h, gates) and of what the product multiplies.
STORED_BITS = {"fp32": 24, "tf32": 24, "bf16": 8, "fp16": 11, "fp64": 53}
OPERAND_BITS = {**STORED_BITS, "tf32": 11}


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
    bias: bool = True
    state: bool = True
    grad_y: bool = True
    grad_state: bool = True
    pad: int = 0
    nan: bool = False  # h0[0, 0] is the NaN of which all bits are set
    seeds: tuple[int, ...] = (0, 2, 5, 7)  # each way to schedule and to deliver
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
            "bias": int(self.bias),
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


def compile_driver(folder: Path) -> Path:
    flags = [
        "-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
        "-Wno-clobbered", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
        "-DFUSED_LSTM_HOST_EMULATION", f"-I{HOST}", f"-I{KERNELS}",
    ]  # fmt: skip
    units = [(dtype, "run_dtype.cpp", [f"-DMATH={dtype.capitalize()}"]) for dtype in TORCH_DTYPE]
    units += [(name, f"{name}.cpp", []) for name in ("emulator", "driver")]
    # Asks the address sanitizer itself where it has to, and takes half of the time.
    units += [("memory", "memory.cpp", ["-O2", "-fno-sanitize=all"])]

    def compile_unit(unit: tuple[str, str, list[str]]) -> str:
        name, source, more = unit
        target = str(folder / f"{name}.o")
        command = ["g++", *flags, *more, "-c", str(HOST / source), "-o", target]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return target

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compile_unit, units))
    program = folder / "driver"
    link = ["g++", "-fsanitize=address,undefined", *objects, "-o", str(program)]
    subprocess.run(link, check=True)
    return program


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
            "b_ih": random(4 * h),
            "b_hh": random(4 * h),
            "w_hh": random(4 * h, h, scale=h**-0.5),
            "h0": random(b, h),
            "c0": random(b, h),
            "grad_h_n": random(b, h),
            "grad_c_n": random(b, h),
        }
        for _ in case.reverse
    ]
    if case.nan:
        for d in directions:
            d["h0"][0, 0] = torch.tensor([-1]).view(torch.float64)[0]
    return grad_y, directions


def round_to(bits: int, values: torch.Tensor) -> torch.Tensor:
    """To a significand of `bits` bits; the gradient passes unchanged."""
    fraction, exponent = torch.frexp(values.detach())
    rounded = torch.ldexp(torch.round(fraction * 2.0**bits), exponent - bits)
    return values + (rounded - values.detach())


def oracle(
    case: Case, grad_y: torch.Tensor, d: Direction, reverse: bool, rounded: bool = False
) -> Direction:
    """What the driver writes of one direction, in float64.

    With `rounded`, h, the weights, and the gradients of the gates are rounded where the dtype must
    round them, and nothing else: no kernel of that dtype can be expected to be closer.
    """

    def operand(values: torch.Tensor) -> torch.Tensor:
        return round_to(OPERAND_BITS[case.dtype], values) if rounded else values

    def stored(values: torch.Tensor) -> torch.Tensor:
        return round_to(STORED_BITS[case.dtype], values) if rounded else values

    live = case.live()
    offset = np.concatenate([[0], np.cumsum(live)])
    h = case.hidden
    x = d["gates_x"].clone().requires_grad_()
    bias = (d["b_ih"] + d["b_hh"]) * case.bias
    w_hh = operand(d["w_hh"])
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
            z = x[at] + bias + w_hh @ operand(h_t)
            z.register_hook(operand)
            i, f, g, o = z.chunk(4)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c_t = f * c_t + i * g
            h_t = stored(o * c_t.tanh())
            y[at], gates[at], c_all[at] = h_t, stored(torch.cat([i, f, g, o])), c_t
        h_n.append(h_t)
        c_n.append(stored(c_t))
    result = {"y": y, "h_n": h_n, "c_n": c_n, "gates": gates, "c": c_all}
    result = {name: torch.stack(rows) for name, rows in result.items()}
    loss = (result["y"] * grad_y).sum() * case.grad_y
    if case.grad_state:
        loss = loss + (result["h_n"] * d["grad_h_n"]).sum() + (result["c_n"] * d["grad_c_n"]).sum()
    gradients = torch.autograd.grad(loss, [x, h0, c0])
    for name, value in zip(("dgates", "dh0", "dc0"), gradients, strict=True):
        result[name] = stored(value)
    return {name: value.detach() for name, value in result.items()}


def run(program: Path, case: Case, folder: Path) -> tuple[list[Direction], list[str], str]:
    """(outputs per direction, without saving too; synchronising calls; message if it failed)."""
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
        return [], [], done.stderr or f"exit status {done.returncode}"
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
    return outputs, done.stdout.split(), ""


def check(program: Path, case: Case, folder: Path) -> None:
    outputs, _, message = run(program, case, folder)
    assert not message, message[-3000:]
    grad_y, directions = make_inputs(case)
    h = case.hidden
    for index, d in enumerate(directions):
        mine = grad_y[:, index * h : (index + 1) * h], d, case.reverse[index] == "1"
        exact, rounded = oracle(case, *mine), oracle(case, *mine, rounded=True)
        for name, value in exact.items():
            # Saved gates are rounded too: twice the unavoidable error, three times for gradients,
            # a few units in the last place where that happens to be nothing, and what sums of up
            # to 4H terms gather in the type they are kept in.
            factor = 3 if name in ("dgates", "dh0", "dc0") else 2
            sums = (4 * h) ** 0.5 * 2.0 ** -max(24, STORED_BITS[case.dtype])
            floor = (4 * 2.0 ** -STORED_BITS[case.dtype] + sums) * max(
                1.0, float(value.abs().max())
            )
            bound = factor * float((rounded[name] - value).abs().max()) + floor
            error = float((outputs[index][name] - value).abs().max())
            assert error <= bound, f"{name}: error {error:.3g}, bound {bound:.3g}"
        unsaved = outputs[len(directions) + index]
        for name in ("y", "h_n", "c_n"):
            assert torch.equal(unsaved[name], outputs[index][name]), (
                f"{name} differs without saving"
            )
