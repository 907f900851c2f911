"""``python -m fused_lstm``: its report, its self-test, and arguments that it does not know."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fused_lstm import __main__ as command
from fused_lstm import _ops

ROOT = Path(__file__).parent.parent


def test_every_dtype_is_reported_and_tested(extension, capsys):
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for dtype in _ops.DTYPES:
        name = command.name_of(dtype)
        assert f"cpu {name}".ljust(17) + "fused" in lines
        assert f"self-test        cpu {name}: passed" in lines


@pytest.mark.parametrize("arguments", [["--anything"], ["profil", "mine:make"], ["--rounds", "3"]])
def test_arguments_that_it_does_not_know(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert error.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert arguments[0] in said.err


def test_the_profile_is_run_with_what_follows(monkeypatch):
    given = []
    monkeypatch.setattr(command._profile, "main", lambda arguments: given.append(arguments) or 3)
    assert command.main(["profile", "mine:make", "--rounds", "1"]) == 3
    assert given == [["mine:make", "--rounds", "1"]]


def test_help_names_the_profile(capsys):
    with pytest.raises(SystemExit) as error:
        command.main(["--help"])
    assert error.value.code == 0
    assert "python -m fused_lstm profile module:function" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "lines"),
    [
        ("FUSED_LSTM_ISA", "foo", ("instruction set", "measured", "self-test")),
        ("FUSED_LSTM_CPU_PLAN", "foo=2", ("self-test",)),
    ],
)
def test_switches_that_say_something_else_are_reported(extension, name, value, lines):
    """In the line that they spoil, and the others are printed."""
    result = subprocess.run(
        [sys.executable, "-m", "fused_lstm"],
        env={**os.environ, "PYTHONPATH": str(ROOT), name: value},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert result.stderr == ""
    for line in result.stdout.splitlines():
        assert (f"{name}: expected" in line) == line.startswith(lines), line
    (switches,) = [each for each in result.stdout.splitlines() if each.startswith("switches")]
    assert f"{name}={value}" in switches
    assert result.stdout.count("self-test") >= len(_ops.DTYPES)


def test_switches_that_are_none_are_marked(monkeypatch):
    for name in [each for each in os.environ if each.startswith("FUSED_LSTM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FUSED_LSTM_STRICKT", "1")
    monkeypatch.setenv("FUSED_LSTM_STRICT", "0")
    switches = dict(command.report())["switches"]
    assert switches == "FUSED_LSTM_STRICKT=1 (not known), FUSED_LSTM_STRICT=0"


def test_the_switches_are_those_of_the_readme():
    table = re.findall(r"^\| `(FUSED_LSTM_\w+)=", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(table) == set(command.SWITCHES)
