"""What the cases run on: a GPU, or in tests the host emulator of the kernels in its place."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


class Gpu:
    """The current CUDA device, by the ops of the package."""

    kind = "cuda"

    def __init__(self) -> None:
        import fused_lstm  # noqa: F401  (registers the ops)
        from fused_lstm import _ops

        self.extension = _ops.extension
        self.ops = torch.ops.fused_lstm
        self.traces = self.extension.build_info()["cuda_trace"]

    def last_run(self) -> dict[str, dict]:
        """What the last call ran: facts of "forward" and of "backward"."""
        ran = self.extension.cuda_last_run()
        return {name: ran[name] for name in ("forward", "backward")}

    def trace_memory(self, words: int, on_host: bool) -> torch.Tensor:
        if on_host:
            return torch.zeros(words, dtype=torch.int64).pin_memory()
        return torch.zeros(words, dtype=torch.int64, device="cuda")

    def set_trace(self, address: int) -> None:
        self.extension.cuda_set_trace(address)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def time(self, function: Callable[[], object], repeats: int = 10) -> float:
        """Median microseconds on the device, after two calls that do not count."""
        for _ in range(2):
            function()
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for begin, end in pairs:
            begin.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(1000 * begin.elapsed_time(end) for begin, end in pairs)

    def exchange(self, options: dict) -> dict:
        """The microbenchmark of exchange.cu."""
        program = ROOT / "build" / "gpu" / "exchange"
        return run_exchange(program, options, steps=(200, 2200))

    @staticmethod
    def facts() -> dict:
        properties = torch.cuda.get_device_properties(0)
        smi = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.mem", "--format=csv"]
        try:
            clocks = subprocess.run(smi, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            clocks = ""
        return {
            "name": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "clocks": clocks,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        }


class Emulated:
    """The kernels' sources on the host. Its times mean nothing: they only fill the same places."""

    kind = "cpu"
    traces = True

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(str(library))
        self.library = library
        self.ops = torch.ops.fused_lstm_emulated

    def last_run(self) -> dict[str, dict]:
        passes = [dict(fact.split("=") for fact in text.split()) for text in self.ops.last_run()]
        return dict(zip(("forward", "backward"), passes, strict=True))

    def trace_memory(self, words: int, on_host: bool) -> torch.Tensor:
        return torch.zeros(words, dtype=torch.int64)

    def set_trace(self, address: int) -> None:
        self.ops.set_trace(address)

    def synchronize(self) -> None:
        pass

    def time(self, function: Callable[[], object], repeats: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        return 1e6 * (time.perf_counter() - start) / repeats

    def exchange(self, options: dict) -> dict:
        return run_exchange(self.library.parent / "exchange", options, steps=(20, 40))

    @staticmethod
    def facts() -> dict:
        return {"name": "host emulator", "torch": torch.__version__}


def run_exchange(program: Path, options: dict, steps: tuple[int, int]) -> dict:
    """Microseconds of a step, from two lengths."""
    arguments = [str(options[name]) for name in ("kib", "blocks", "fence")]
    microseconds = []
    for count in steps:
        done = subprocess.run(
            [str(program), *arguments, str(count)],
            capture_output=True, text=True, check=False, timeout=15,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip() or f"exit status {done.returncode}")
        microseconds.append(float(done.stdout))
    return {"step_us": (microseconds[1] - microseconds[0]) / (steps[1] - steps[0])}


def open_device(emulator: str) -> Gpu | Emulated:
    return Emulated(Path(emulator)) if emulator else Gpu()
