"""One folder, two names: `bench` in a checkout, `fused_lstm.bench` where it is installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python files as they are in a wheel, without the compiled extension."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return folder


def test_a_wheel_holds_the_benchmark(installed):
    names = {path.name for path in (ROOT / "bench").glob("*.py")}
    assert {path.name for path in (installed / "fused_lstm" / "bench").glob("*.py")} == names
    assert not (installed / "bench").exists()


def test_it_runs_under_the_packages_name(installed):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    for module, arguments, said in (
        ("fused_lstm.bench", ["--list"], "silero-vad"),
        ("fused_lstm.bench.plot", ["--help"], "usage: python -m fused_lstm.bench.plot "),
    ):
        run = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=installed,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert run.returncode == 0, run.stderr
        assert said in run.stdout


@pytest.mark.parametrize(
    ("package", "advice"),
    [
        ("bench", 'pip install --no-build-isolation ".[bench]"'),
        ("fused_lstm.bench", 'pip install "fused_lstm[bench]"'),
    ],
)
def test_without_rich_it_says_what_to_install(request, package, advice):
    """A checkout is installed from its folder: no index has it by name."""
    folder = ROOT if package == "bench" else request.getfixturevalue("installed")
    code = f"""
import importlib.util, runpy
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "rich" else found(name, *rest)
runpy.run_module({package!r}, run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 1
    assert run.stderr == f"python -m {package} needs rich: {advice}\n"


def test_modules_import_each_other_relatively():
    """`from bench import` would not be found where the package is installed."""
    for path in (ROOT / "bench").glob("*.py"):
        found = re.findall(r"^\s*(?:from|import) bench\b.*", path.read_text(), re.MULTILINE)
        assert not found, f"{path.name}: {found}"
