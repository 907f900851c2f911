"""setup.py: what it refuses, what it says, what it puts into a package."""

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import lines_said

import fused_lstm
from fused_lstm import _ops

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def setup_module():
    """setup.py as a module: nothing is built on import."""
    spec = importlib.util.spec_from_file_location("fused_lstm_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_setup(*arguments, python_path=None, **variables):
    """setup.py in a process of its own, with other environment variables."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FUSED_LSTM_")}
    environment |= variables
    if python_path:
        environment["PYTHONPATH"] = str(python_path)
    return subprocess.run(
        [sys.executable, "setup.py", *(arguments or ["--version"])],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def refusal(result):
    """The one line that a refused build prints."""
    assert result.returncode != 0
    lines = lines_said(result.stderr.strip())
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("fused_lstm: ")
    return lines[0]


def fake_torch(folder, source):
    (folder / "torch.py").write_text(source)
    return folder


def test_refuses_without_torch(tmp_path):
    path = fake_torch(tmp_path, "raise ImportError")
    line = refusal(run_setup(python_path=path))
    assert "torch is not installed" in line
    assert "--no-build-isolation" in line


def test_refuses_old_torch(tmp_path):
    path = fake_torch(tmp_path, "__version__ = '2.9.1+cu128'")
    assert "torch 2.10 or newer is needed, this is 2.9.1+cu128" in refusal(
        run_setup(python_path=path)
    )


def test_refuses_without_compiler():
    line = refusal(run_setup(CXX="no-such-compiler -O2"))
    assert "no C++ compiler: 'no-such-compiler' was not found" in line
    assert "g++" in line


def test_refuses_old_python(setup_module, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 7))
    with pytest.raises(SystemExit, match=r"Python 3\.10 or newer"):
        setup_module.check_tools()


def test_the_oldest_versions_are_the_same_everywhere(setup_module):
    """Of setup.py, what pip reads, and what a reader does."""
    oldest = {"python": "PYTHON", "torch": "TORCH", "setuptools": "SETUPTOOLS"}
    for name, constant in oldest.items():
        version = ".".join(map(str, getattr(setup_module, f"OLDEST_{constant}")))
        oldest[name] = version.removesuffix(".0")
    project = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">={oldest["python"]}"\n' in project
    assert f'requires = ["setuptools>={oldest["setuptools"]}"]\n' in project
    assert f'target-version = "py{oldest["python"].replace(".", "")}"\n' in project
    readme, help_text = (
        " ".join((ROOT / name).read_text().split())
        for name in ("README.md", "docs/troubleshooting.md")
    )
    for name, what in (("python", "Python"), ("torch", "torch")):
        assert f"{what} {oldest[name]} or newer" in readme
    for name, what in (("python", "Python"), ("torch", "torch"), ("setuptools", "setuptools")):
        assert f"`{what} {oldest[name]} or newer is needed, this is ...`" in help_text


def test_refuses_old_setuptools(setup_module, monkeypatch):
    monkeypatch.setattr(setup_module.setuptools, "__version__", "65.5.0")
    said = r"setuptools 77 or newer .* is 65\.5\.0: `pip install --upgrade setuptools`"
    with pytest.raises(SystemExit, match=said):
        setup_module.check_tools()


@pytest.mark.parametrize(
    ("name", "value"), [("FUSED_LSTM_CUDA", "yes"), ("FUSED_LSTM_SANITIZE", "2")]
)
def test_refuses_unknown_switch(name, value):
    result = run_setup(**{name: value})
    assert result.returncode != 0
    assert f"{name}={value} is not one of" in result.stderr


def test_says_that_cuda_is_switched_off():
    result = run_setup(FUSED_LSTM_CUDA="0")
    assert result.returncode == 0
    assert "fused_lstm: CPU only: FUSED_LSTM_CUDA=0." in result.stderr.splitlines()


CPU_TORCH = SimpleNamespace(__version__="2.13.0+cpu", version=SimpleNamespace(cuda=None))
CUDA_TORCH = SimpleNamespace(__version__="2.13.0+cu128", version=SimpleNamespace(cuda="12.8"))
KERNELS = ["csrc/cuda/gates.cu"]


def toolkit(folder, version):
    """A CUDA toolkit that holds nothing but an nvcc, which tells its version."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --list-gpu-arch ]; then echo compute_80; echo compute_90; exit; fi\n'
        f"echo 'Cuda compilation tools, release {version}, V{version}.1'\n"
    )
    nvcc.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("torch", "home", "kernels", "reason"),
    [
        (CUDA_TORCH, "/nowhere", [], "there are no CUDA sources"),
        (CPU_TORCH, "/nowhere", KERNELS, r"torch 2\.13\.0\+cpu is not a CUDA build"),
        (CUDA_TORCH, None, KERNELS, "no CUDA toolkit was found: .*CUDA_HOME"),
        (CUDA_TORCH, "/nowhere", KERNELS, "no working nvcc in CUDA_HOME=/nowhere"),
    ],
)
def test_says_why_there_is_no_cuda(setup_module, torch, home, kernels, reason):
    said = setup_module.why_no_cuda(torch, home, kernels)
    assert re.search(reason, said)
    assert "\n" not in said


def test_compiles_cuda_where_versions_fit(setup_module, tmp_path):
    assert setup_module.why_no_cuda(CUDA_TORCH, toolkit(tmp_path, "12.4"), KERNELS) is None


def test_names_both_versions_where_cuda_differs(setup_module, tmp_path):
    said = setup_module.why_no_cuda(CUDA_TORCH, toolkit(tmp_path, "13.0"), KERNELS)
    assert "is 13.0" in said
    assert "built for CUDA 12.8" in said
    assert "set CUDA_HOME" in said


def test_toolkit_is_asked_where_it_is(setup_module, monkeypatch, tmp_path):
    """nvcc on PATH may be a script that calls another; torch would take the script's folder."""
    script = tmp_path / "nvcc"
    script.write_text(
        "#!/bin/sh\necho '#$ _CUDART_=cudart' >&2\necho '#$ TOP=/opt/cuda/bin/..' >&2\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", "/chosen")
    setup_module.find_toolkit()
    assert os.environ["CUDA_HOME"] == "/chosen"
    monkeypatch.delenv("CUDA_HOME")
    setup_module.find_toolkit()
    assert os.environ.pop("CUDA_HOME") == "/opt/cuda"


def test_default_architectures_are_those_the_toolkit_knows(setup_module, tmp_path):
    assert setup_module.default_archs(toolkit(tmp_path, "12.4")) == ["8.0", "9.0a"]


@pytest.mark.skipif(not (ROOT / "csrc" / "cuda").exists(), reason="there are no CUDA sources")
def test_cuda_on_demand_is_an_error_where_it_cannot_be(tmp_path):
    line = refusal(run_setup(FUSED_LSTM_CUDA="1", CUDA_HOME=str(tmp_path)))
    assert "FUSED_LSTM_CUDA=1, but CUDA cannot be compiled: " in line


def test_pip_headers_only_for_a_slim_toolkit(setup_module, tmp_path):
    torch = SimpleNamespace(__file__=str(tmp_path / "torch" / "__init__.py"))
    headers = tmp_path / "nvidia" / "cusparse" / "include"
    headers.mkdir(parents=True)
    home = tmp_path / "cuda"
    (home / "include").mkdir(parents=True)
    assert setup_module.pip_cuda_includes(torch, str(home)) == [str(headers)]
    (home / "include" / "cusparse.h").touch()
    assert setup_module.pip_cuda_includes(torch, str(home)) == []


def test_jobs_follow_memory(setup_module, monkeypatch):
    monkeypatch.setattr(setup_module.os, "sched_getaffinity", lambda _: set(range(64)))
    memory = f"MemAvailable: {8 * 2**20} kB"  # 8 GiB
    monkeypatch.setattr(setup_module.Path, "read_text", lambda path: memory)
    assert setup_module.jobs() == 3
    monkeypatch.setattr(setup_module.Path, "read_text", lambda path: "MemAvailable: 1 kB")
    assert setup_module.jobs() == 1


def test_flags_stay_portable_and_exact(setup_module):
    compile_flags, _ = setup_module.cxx_flags([])
    for flag in compile_flags:
        assert not flag.startswith(("-march", "-mtune", "-std", "-ffast-math", "-Ofast"))


def test_a_compiler_command_is_one_short_line(setup_module):
    source = f"{ROOT}/csrc/cpu/forward.cpp".encode()
    command = (
        b"[3/18] c++ -MMD -MF /x/y.o.d -I/a" + b" -I/b" * 400 + b" -c " + source + b" -o y.o -O3"
    )
    assert setup_module.short_line(command + b"\n") == b"[3/18] csrc/cpu/forward.cpp\n"
    cuda = b"[1/2] nvcc -Xcompiler -fPIC -c -c /elsewhere/x.cu -o x.o\n"
    assert setup_module.short_line(cuda) == b"[1/2] /elsewhere/x.cu\n"


def test_what_compilers_say_is_passed_on(setup_module, capfd):
    warning = "csrc/cpu/forward.cpp:12:3: warning: unused variable 'x' [-Wunused-variable]"
    command = "[1/1] c++ -c csrc/x.cpp -o x.o"
    said = f"{command}\n{warning}\nFAILED: [code=1] x.o"
    with setup_module.short_lines():
        subprocess.run([sys.executable, "-c", f"print({said!r})"], check=True)
        os.write(1, b"from Python\n")
    os.write(1, b"afterwards\n")
    assert capfd.readouterr().out.splitlines() == [
        "[1/1] csrc/x.cpp",
        warning,
        "FAILED: [code=1] x.o",
        "from Python",
        "afterwards",
    ]


def test_output_is_put_back_after_an_error(setup_module, capfd):
    with pytest.raises(RuntimeError), setup_module.short_lines():
        raise RuntimeError
    os.write(1, b"still there\n")
    assert capfd.readouterr().out == "still there\n"


@pytest.mark.slow  # by the process of the other test that writes *.egg-info here
def test_source_package_can_be_built(tmp_path):
    """Every file that the build reads is in the source package."""
    result = run_setup("--quiet", "sdist", "--dist-dir", str(tmp_path))
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    wanted = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("csrc/**/*") if p.is_file()}
    wanted |= {p.relative_to(ROOT).as_posix() for p in ROOT.glob("fused_lstm/*.py")}
    wanted |= {p.relative_to(ROOT).as_posix() for p in ROOT.glob("bench/*.py")}
    wanted |= {p.relative_to(ROOT).as_posix() for p in ROOT.glob("tests/*.py")}
    wanted |= {p.relative_to(ROOT).as_posix() for p in ROOT.glob("examples/*.py")}
    wanted |= {"setup.py", "pyproject.toml", "README.md", "LICENSE", "fused_lstm/py.typed"}
    wanted |= {
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "Makefile",
        "requirements-dev.txt",
    }
    assert wanted <= names
    assert not [name for name in names if name.endswith(".so")]


@pytest.mark.core
@pytest.mark.skipif("FUSED_LSTM_SANITIZE" not in os.environ, reason="only for `make sanitize`")
def test_sanitizers_see_the_extension():
    """Another build in its place would pass every test, and show nothing."""
    names = Path(_ops.extension.__file__).read_bytes()
    assert b"__asan_init" in names
    assert b"__ubsan_handle" in names


def test_one_version_is_told_everywhere():
    version = fused_lstm.__version__
    (cited,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    logged = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited == version
    assert logged[0] == version


def run_installed(folder, *arguments):
    """Python with what is installed in a folder, started there: the checkout is not on its path."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_packages_install_and_pass_tests_without_the_checkout(tmp_path):
    """A source package, a wheel made of it, installed by pip, tested with the tests that it has."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    # What is tried is that nothing is missing: to optimise would take twice the time, and six
    # architectures of GPUs half an hour.
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    compiler.chmod(0o755)
    environment = {**os.environ, "CXX": str(compiler), "FUSED_LSTM_CUDA": "0"}
    subprocess.run(build, check=True, capture_output=True, timeout=900, env=environment)
    (source,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        (metadata,) = [opened.read(n).decode() for n in names if n.endswith("METADATA")]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fused_lstm"}
    assert not [name for name in names if name.endswith((".cpp", ".h", ".cu", ".json", ".png"))]
    release = ".".join(torch.__version__.split(".")[:2])
    assert f"Requires-Dist: torch=={release}.*" in metadata

    there = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(there), str(wheel)], check=True, timeout=300)
    assert list((there / "fused_lstm").glob("_C*.so"))
    assert (there / "fused_lstm" / "py.typed").exists()
    assert "self-test        cpu float32: passed" in run_installed(there, "-m", "fused_lstm")

    with tarfile.open(source) as opened:
        opened.extractall(tmp_path, filter="data")
    tests = tmp_path / source.name.removesuffix(".tar.gz") / "tests"
    quick = [str(tests / f"test_{name}.py") for name in ("streaming", "cell", "replace")]
    run_installed(there, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *quick)
