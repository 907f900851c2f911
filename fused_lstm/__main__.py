"""``python -m fused_lstm``: what was built, what runs here, and whether it computes rightly.

``python -m fused_lstm profile module:function`` times a model before and after ``replace_lstm``.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import fused_lstm
from fused_lstm import LSTM, _ops, _profile

# Times the error that nn.LSTM makes in the same dtype, and units in the last place of the largest
# element: as many for every dtype and size, between which tests/oracle.py tells.
OUTPUT_FACTOR, GRADIENT_FACTOR, FLOOR = 2, 3, 8
# Of the build and of the run, as the README lists them.
SWITCHES = {
    f"FUSED_LSTM_{name}"
    for name in (
        *("CUDA", "SANITIZE", "CUDA_TRACE"),
        *("DISABLE", "STRICT", "ISA", "ADAPT_THREADS", "CPU_PLAN", "CUDA_ALGORITHM"),
    )
}


def report() -> Iterator[tuple[str, str]]:
    """Name and value of every fact worth knowing when something is slow or wrong."""
    yield "fused_lstm", fused_lstm.__version__
    yield "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"
    if _ops.extension is None:
        yield "extension", f"none: {_ops.unavailable('cpu', torch.float32)}"
    else:
        built = _ops.extension.build_info()
        yield "extension", f"built for torch {built['torch']} with {built['compiler']}"
        isas = ", ".join(built["compiled_isas"])
        yield "instruction set", f"{or_error(_ops.extension.cpu_isa)} (compiled: {isas})"
        yield "openmp", "yes" if built["openmp"] else "no: the kernels run on one thread"
        yield "measured", or_error(lambda: machine_line(_ops.extension.cpu_machine("float32")))
        yield "cuda", cuda_line(built)
    for dtype in _ops.DTYPES:
        reason = _ops.unavailable("cpu", dtype)
        yield f"cpu {name_of(dtype)}", "fused" if reason is None else f"fallback: {reason}"
    in_force = [
        f"{name}={value}" + ("" if name in SWITCHES else " (not known)")
        for name, value in sorted(os.environ.items())
        if name.startswith("FUSED_LSTM_")
    ]
    yield "switches", ", ".join(in_force) or "none"


def or_error(fact: Callable[[], str]) -> str:
    """A fact, or why there is none: a switch may hold what it does not know."""
    try:
        return fact()
    except (RuntimeError, ValueError) as error:
        return f"error: {error}"


def machine_line(facts: dict[str, float]) -> str:
    """What the planner of the CPU kernels rests on, measured here."""
    rate = 2 * facts["lanes"] / facts["multiply_ns"]
    line = (
        f"{rate:.0f} GFLOP/s a core; L2 {facts['l2_bytes'] / 2**20:g} MiB, "
        f"{facts['l2_rate']:.0f} GB/s; shared cache {facts['shared_rate']:.0f} GB/s"
    )
    if facts["threads"] > 1:
        line += (
            f", {facts['shared_rate_all']:.0f} with all; barrier {facts['barrier_ns_all']:.0f} ns, "
            f"starting {facts['threads']:.0f} threads {facts['fork_ns_all']:.0f} ns"
        )
    return line


def cuda_line(built: dict) -> str:
    """Whether CUDA runs here, and if not, why."""
    if not built["cuda"]:
        return f"no: {built.get('cuda_reason') or 'compiled without it'}"
    compiled = f"compiled with {built['cuda']} for {built['cuda_archs']}"
    if not torch.cuda.is_available():
        return f"no: {compiled}, but torch finds no GPU"
    return f"yes: {compiled}; {torch.cuda.get_device_name()}"


def name_of(dtype: torch.dtype) -> str:
    """``float32``, not ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def quiet_fallback() -> Iterator[None]:
    """The report has said already what falls back, and why."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fused_lstm.FusedLSTMWarning)
        yield


def run(lstm: nn.RNNBase, x: Tensor) -> dict[str, Tensor]:
    """Outputs and gradients of one forward and backward pass, by name."""
    x = x.detach().requires_grad_()
    y, (h_n, c_n) = lstm(x)
    loss = (y.sum(-1) * torch.linspace(1, 2, y.shape[1]).to(y)).sum() + (h_n * c_n.cos()).sum()
    names, parameters = zip(*lstm.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, [x, *parameters])
    outputs = {"y": y, "h_n": h_n, "c_n": c_n}
    return outputs | {f"gradient of {n}": g for n, g in zip(("x", *names), gradients, strict=True)}


def self_test(device: str, dtype: torch.dtype) -> str | None:
    """Compare LSTM with nn.LSTM, both against float64; None if it is right, else what is wrong."""
    sizes = {"input_size": 10, "hidden_size": 19, "num_layers": 2, "bidirectional": True}
    torch.manual_seed(0)
    plain = nn.LSTM(**sizes, dtype=dtype, device=device)
    fused = LSTM(**sizes, dtype=dtype, device=device)
    fused.load_state_dict(plain.state_dict())
    exact = nn.LSTM(**sizes, dtype=torch.float64, device=device)
    exact.load_state_dict(plain.state_dict())
    x = torch.randn(7, 3, 10, device=device, dtype=dtype)

    try:
        with quiet_fallback():
            actual = run(fused, x)
    except (RuntimeError, ValueError) as error:
        return str(error)
    theirs, expected = run(plain, x), run(exact, x.double())
    for name, value in expected.items():
        factor = GRADIENT_FACTOR if name.startswith("gradient") else OUTPUT_FACTOR
        floor = FLOOR * torch.finfo(dtype).eps * value.abs().max()
        error = (actual[name].double() - value).abs().max()
        allowed = factor * (theirs[name].double() - value).abs().max() + floor
        if not error <= allowed:
            return f"{name} is off by {error:.1e}, allowed are {allowed:.1e}"
    return None


def main(arguments: list[str]) -> int:
    """Print the report and run the self-test, or ``profile`` a model.

    Returns:
        0 if every comparison passed and the extension is there (or switched off), else 1; a build
        for the CPU alone is one, also beside a GPU. Of ``profile`` what it returns.
    """
    if arguments[:1] == ["profile"]:
        return _profile.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m fused_lstm",
        description=__doc__.replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)  # there are none but --help
    for name, value in report():
        print(f"{name:16} {value}")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    failed = _ops.extension is None and not _ops.disabled()
    for device in devices:
        for dtype in _ops.DTYPES:
            problem = self_test(device, dtype)
            failed = failed or problem is not None
            print(f"{'self-test':16} {device} {name_of(dtype)}: {problem or 'passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
