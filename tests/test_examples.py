"""The programs in examples/ run as their headers say, and do what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_example(name, *arguments):
    """What the program prints."""
    command = [sys.executable, "-W", "ignore::UserWarning", f"examples/{name}.py", *arguments]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def largest_difference(output):
    return float(re.search(r"largest difference .*: (\S+)$", output, re.MULTILINE).group(1))


def test_every_example_is_run_here():
    source = Path(__file__).read_text()
    for path in (ROOT / "examples").glob("*.py"):
        assert f'"{path.stem}"' in source


def test_predict_wave_learns():
    output = run_example("predict_wave", "--steps", "80")
    before, after = map(float, re.search(r"^loss (\S+) -> (\S+) ", output, re.MULTILINE).groups())
    assert after < 0.2 * before


def test_replace_in_model_keeps_the_outputs():
    output = run_example("replace_in_model")
    assert largest_difference(output) < 1e-5
    assert output.rstrip().endswith("LSTM(64, 96, num_layers=2, bidirectional=True)")


@pytest.mark.parametrize("frames", [50])
def test_streaming_is_the_same_as_one_call(frames):
    assert largest_difference(run_example("streaming", "--frames", str(frames))) < 1e-6


@pytest.mark.slow
def test_aot_inductor_computes_in_cpp_what_python_does(extension):
    assert largest_difference(run_example("aot_inductor")) < 1e-6
