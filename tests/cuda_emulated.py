"""Builds what stands in for a GPU: the CUDA layer's own source on the emulator of its kernels."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
INCLUDES = [str(ROOT / folder) for folder in ("csrc", "csrc/cuda", "tests/cuda_host")]
FLAGS = ["-O1", "-w", "-DFUSED_LSTM_HOST_EMULATION", "-DFUSED_LSTM_CUDA_TRACE"]
LAYER = ("layer", "ran", "forward", "backward", "steps")


@functools.cache
def folder() -> Path:
    """Where one test run keeps what it builds; removed when the process ends."""
    holder = tempfile.TemporaryDirectory(prefix="fused_lstm_emulated_")
    folder.holder = holder
    return Path(holder.name)


@functools.cache
def build_ops() -> Path:
    """The library of torch.ops.fused_lstm_emulated (cuda_host/layer_ops.cpp), loaded."""
    from torch.utils import cpp_extension

    host, cuda = ROOT / "tests" / "cuda_host", ROOT / "csrc" / "cuda"
    sources = [
        *host.glob("layer_*.cpp"),
        host / "emulator.cpp",
        host / "memory.cpp",
        *(path for path in cuda.glob("*.cpp") if path.stem != "bindings"),
        ROOT / "csrc" / "checks.cpp",
        *(cuda / "layer" / f"{name}.cpp" for name in LAYER),
    ]
    cpp_extension.load(
        "fused_lstm_emulated",
        [str(path) for path in sources],
        extra_include_paths=INCLUDES,
        extra_cflags=[*FLAGS, "-fvisibility=hidden"],
        extra_ldflags=["-Wl,-Bsymbolic"],
        build_directory=str(folder()),
        with_cuda=False,
        is_python_module=False,
    )
    return folder() / "fused_lstm_emulated.so"


@functools.cache
def build_exchange() -> Path:
    """bench/gpu/exchange.cu as a program for the host."""
    host = ROOT / "tests" / "cuda_host"
    sources = [ROOT / "bench" / "gpu" / "exchange.cu", host / "emulator.cpp", host / "memory.cpp"]
    flags = ["-std=c++17", *FLAGS, *(f"-I{path}" for path in INCLUDES)]
    stubs = folder() / "stubs.cpp"
    # What the emulator asks of the address sanitizer, which is not here.
    stubs.write_text(
        "#include <cstddef>\n"
        'extern "C" {\n'
        "void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}\n"
        "void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}\n"
        "void* __asan_region_is_poisoned(void*, size_t) { return nullptr; }\n"
        "}\n"
    )

    def compile_one(source: Path) -> str:
        target = folder() / f"exchange_{source.stem}.o"
        command = ["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*sources, stubs]))
    program = folder() / "exchange"
    subprocess.run(["g++", *objects, "-o", str(program)], check=True)
    return program
