"""Builds fused_lstm/_C from csrc with torch's BuildExtension; refuses briefly what it cannot build.

Environment:
    FUSED_LSTM_CUDA=auto|0|1   compile csrc/cuda: where possible (default), never, or else fail
    FUSED_LSTM_SANITIZE=1      address and undefined-behaviour sanitizers (`make sanitize`)
    FUSED_LSTM_CUDA_TRACE=1    kernels with clocks and a watchdog in them (csrc/cuda/trace.cuh)
    TORCH_CUDA_ARCH_LIST       CUDA architectures, as for every torch extension
    MAX_JOBS                   compilers run at once; by default as cores and memory allow
    CXX, CUDA_HOME             which compiler, which CUDA toolkit
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import setuptools

ROOT = Path(__file__).resolve().parent
OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 10)
OLDEST_SETUPTOOLS = (77, 0)  # older ones cannot read the license in pyproject.toml
# A C++ file that includes torch's headers takes 1.5 GB to compile, nvcc more.
GIB_PER_JOB = 2.5
# 9.0a: Hopper and no other 9.x; what is its own, as wgmma, is not in plain 9.0. No kernel needs it.
CUDA_ARCHS = ("8.0", "8.6", "8.9", "9.0a", "10.0", "12.0")


def refuse(reason: str) -> NoReturn:
    sys.exit(f"fused_lstm: {reason}")


def say(line: str) -> None:
    print(f"fused_lstm: {line}", file=sys.stderr, flush=True)


def version_of(text: str) -> tuple[int, int]:
    """Major and minor number: "2.13.0+cpu" -> (2, 13)."""
    numbers = re.findall(r"\d+", text)
    return int(numbers[0]), int(numbers[1])


def needed(what: str, oldest: tuple[int, int], found: str) -> str:
    """Such as "torch 2.10 or newer is needed, this is 2.9.1"; (77, 0) is called 77."""
    major, minor = oldest
    version = f"{major}.{minor}" if minor else f"{major}"
    return f"{what} {version} or newer is needed, this is {found}"


def check_tools() -> None:
    if sys.version_info < OLDEST_PYTHON:
        refuse(f"{needed('Python', OLDEST_PYTHON, sys.version.split()[0])}.")
    if version_of(setuptools.__version__) < OLDEST_SETUPTOOLS:
        reason = needed("setuptools", OLDEST_SETUPTOOLS, setuptools.__version__)
        refuse(f"{reason}: `pip install --upgrade setuptools`")


def import_torch():
    """torch, or a refusal that says how to get it."""
    try:
        import torch
    except ImportError:
        refuse(
            "torch is not installed where the build runs. Install torch, setuptools and ninja, "
            "then run `pip install --no-build-isolation .`"
        )
    if version_of(torch.__version__) < OLDEST_TORCH:
        refuse(f"{needed('torch', OLDEST_TORCH, torch.__version__)}.")
    return torch


def switch(name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name) or default
    if value not in allowed:
        refuse(f"{name}={value} is not one of {', '.join(allowed)}.")
    return value


def check_compiler() -> None:
    """There must be the C++ compiler that torch will call, and Python's headers."""
    default = "clang++" if sys.platform == "darwin" else "c++"
    command = shlex.split(os.environ.get("CXX", default))
    if sys.platform != "win32" and shutil.which(command[0]) is None:
        refuse(
            f"there is no C++ compiler: '{command[0]}' was not found. "
            "Install g++ (Debian, Ubuntu: `apt install g++`) or set CXX."
        )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        refuse(f"{header} is missing. Debian, Ubuntu: `apt install python3-dev`.")


# CUDA or not, and why


def find_toolkit() -> None:
    """Set CUDA_HOME to the toolkit of the nvcc on PATH, for torch to use.

    torch takes the folder above the one where nvcc lies, which is wrong where that nvcc is a link
    or a script. nvcc itself knows.
    """
    if os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or not shutil.which("nvcc"):
        return
    command = ["nvcc", "--dryrun", "-x", "cu", "-E", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    if found := re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE):
        os.environ["CUDA_HOME"] = os.path.normpath(found.group(1).strip())


def toolkit_version(cuda_home: str) -> str | None:
    """Version of the toolkit's nvcc, such as "13.0"; None without a working nvcc."""
    nvcc = Path(cuda_home) / "bin" / "nvcc"
    try:
        answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+\.\d+)", answer.stdout)
    return found.group(1) if found else None


def why_no_cuda(torch, cuda_home: str | None, sources: list[str]) -> str | None:
    """Why CUDA cannot be compiled here, in one line; None where it can."""
    if not sources:
        return "there are no CUDA sources"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    if cuda_home is None:
        return "no CUDA toolkit was found: put nvcc on PATH or set CUDA_HOME"
    toolkit = toolkit_version(cuda_home)
    if toolkit is None:
        return f"there is no working nvcc in CUDA_HOME={cuda_home}"
    if version_of(toolkit)[0] != version_of(torch.version.cuda)[0]:
        return (
            f"the CUDA toolkit in {cuda_home} is {toolkit}, but torch {torch.__version__} was "
            f"built for CUDA {torch.version.cuda}: set CUDA_HOME to a {torch.version.cuda} "
            f"toolkit, or install a torch built for CUDA {toolkit}"
        )
    return None


def default_archs(cuda_home: str) -> list[str]:
    """Those of CUDA_ARCHS that this toolkit's nvcc can compile for."""
    command = [str(Path(cuda_home) / "bin" / "nvcc"), "--list-gpu-arch"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return [arch for arch in CUDA_ARCHS if f"compute_{re.sub('[.a]', '', arch)}" in listed]


def pip_cuda_includes(torch, cuda_home: str) -> list[str]:
    """Header folders of the pip packages torch runs on, for toolkits that lack library headers."""
    if (Path(cuda_home) / "include" / "cusparse.h").exists():
        return []
    packages = Path(torch.__file__).parent.parent / "nvidia"
    return [str(folder) for folder in sorted(packages.glob("*/include"))]


# Flags


def jobs() -> int:
    """How many compilers may run at once: no more than there are cores, or memory for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = []
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        limits += [int(available.group(1)) * 1024] if available else []
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # not Linux, or a cgroup without a limit
        pass
    by_memory = [int(limit / (GIB_PER_JOB * 2**30)) for limit in limits]
    return max(1, min([cores or 1, *by_memory]))


def cxx_flags(torch_includes: list[str]) -> tuple[list[str], list[str]]:
    """Flags for compiling and for linking the C++ sources."""
    compile_flags = ["-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"]
    # Python's own flags bring -fwrapv, which hides overflow from the optimiser and the sanitizer.
    compile_flags += ["-fno-wrapv", "-ffp-contract=fast", "-fno-math-errno"]
    # A folder named by -isystem gives no warnings, also where torch names it again by -I.
    compile_flags += [flag for folder in torch_includes for flag in ("-isystem", folder)]
    link_flags = []
    if switch("FUSED_LSTM_SANITIZE", "0", ("0", "1")) == "1":
        # vptr needs type information that torch does not export.
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize=vptr"]
        compile_flags += [*sanitize, "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
        compile_flags += ["-O1", "-g1"]
        link_flags += sanitize
    return compile_flags, link_flags


def nvcc_flags(includes: list[str]) -> list[str]:
    flags = ["-O3", "--expt-relaxed-constexpr", "-lineinfo", "-Xptxas=-warn-spills"]
    # torch turns these operators off; nvcc alone, as the tests call it, leaves them on.
    kinds = ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS")
    flags += [f"-U__CUDA_NO_{kind}__" for kind in kinds]
    return flags + [flag for folder in includes for flag in ("-isystem", folder)]


# Output


def short_line(line: bytes) -> bytes:
    """Of a command that ninja runs, its number and source file; any other line as it is."""
    found = re.match(rb"(\[\d+/\d+\]) .* -c (\S+\.(?:cpp|cu)) ", line)
    if not found:
        return line
    root = f"{ROOT}{os.sep}".encode()
    return found[1] + b" " + found[2].removeprefix(root) + b"\n"


@contextlib.contextmanager
def short_lines() -> Iterator[None]:
    """One line on stdout for each file that is compiled, where ninja prints 2,000 characters.

    ninja writes to the file descriptor, so that is what is redirected. What the compilers say is
    not touched.
    """
    sys.stdout.flush()
    reading, writing = os.pipe()
    stdout = os.dup(1)
    os.dup2(writing, 1)
    os.close(writing)

    def copy() -> None:
        with open(reading, "rb") as lines:
            for line in lines:
                os.write(stdout, short_line(line))

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)  # closes the pipe's last end for writing, which ends the thread
        thread.join()
        os.close(stdout)


def sources(*patterns: str) -> list[str]:
    """Files that match, relative to this one, as setuptools wants them."""
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def build_extension() -> dict:
    """Arguments for setup() that describe fused_lstm._C."""
    check_tools()
    torch = import_torch()
    check_compiler()
    find_toolkit()
    from torch.utils import cpp_extension

    os.environ.setdefault("MAX_JOBS", str(jobs()))
    # csrc/cuda/*.cpp plans for a GPU and needs none: it is in every build, and tested in every one.
    files = sources("csrc/*.cpp", "csrc/*/*.cpp")
    cuda_files = sources("csrc/cuda/**/*.cu", "csrc/cuda/layer/*.cpp")
    wanted = switch("FUSED_LSTM_CUDA", "auto", ("auto", "0", "1"))
    reason = why_no_cuda(torch, cpp_extension.CUDA_HOME, cuda_files)
    if wanted == "0":
        reason = "FUSED_LSTM_CUDA=0"
    elif wanted == "1" and reason is not None:
        refuse(f"FUSED_LSTM_CUDA=1, but CUDA cannot be compiled: {reason}.")

    compile_flags, link_flags = cxx_flags(cpp_extension.include_paths())
    flags = {"cxx": compile_flags}
    facts = {"TORCH_VERSION": torch.__version__, "CUDA_REASON": reason or ""}
    make_extension = cpp_extension.CppExtension
    if reason is None:
        home = cpp_extension.CUDA_HOME
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(default_archs(home)))
        includes = pip_cuda_includes(torch, home)
        flags["cxx"] += [flag for folder in includes for flag in ("-isystem", folder)]
        flags["nvcc"] = nvcc_flags(includes)
        facts["CUDA_VERSION"] = toolkit_version(home)
        facts["CUDA_ARCHS"] = os.environ["TORCH_CUDA_ARCH_LIST"]
        make_extension = cpp_extension.CUDAExtension
        files += cuda_files
        say(f"with CUDA {facts['CUDA_VERSION']} for {facts['CUDA_ARCHS']}.")
    else:
        say(f"CPU only: {reason}.")

    class BuildExtension(cpp_extension.BuildExtension):
        def build_extensions(self) -> None:
            with short_lines():
                super().build_extensions()

    macros = [(f"FUSED_LSTM_{name}", f'"{value}"') for name, value in facts.items()]
    if reason is None:
        macros.append(("FUSED_LSTM_WITH_CUDA", "1"))
        if switch("FUSED_LSTM_CUDA_TRACE", "0", ("0", "1")) == "1":
            macros.append(("FUSED_LSTM_CUDA_TRACE", "1"))
    extension = make_extension(
        "fused_lstm._C",
        files,
        include_dirs=[str(ROOT / "csrc")],
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=link_flags,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension},
        # A wheel runs with the release it was compiled against; pip then says so of any other.
        "install_requires": ["torch=={}.{}.*".format(*version_of(torch.__version__))],
    }


if __name__ == "__main__":
    setuptools.setup(**build_extension())
