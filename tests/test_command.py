"""``python -m fused_lstm``: its report, its self-test, and arguments that it does not know."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fused_lstm
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


def test_the_package_loads_nothing_that_compiles():
    """What does is slow to load, and warns where it finds a CUDA toolkit and no GPU."""
    loaded = "{'setuptools', 'torch.utils.cpp_extension'} & {*sys.modules}"
    result = subprocess.run(
        [sys.executable, "-c", f"import fused_lstm, sys; print({loaded})"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.stdout, result.stderr) == ("set()\n", "")


def too_large(forward, factor):
    """Outputs."""

    def wrong(self, *args, **options):
        y, state = forward(self, *args, **options)
        return factor * y, state

    return wrong


def too_steep(forward, factor):
    """Gradients alone."""

    def wrong(self, *args, **options):
        y, state = forward(self, *args, **options)
        y = y.view_as(y)
        y.register_hook(lambda gradient: factor * gradient)
        return y, state

    return wrong


@pytest.mark.parametrize("fault", [too_large, too_steep])
@pytest.mark.parametrize(
    ("factor", "seen"),
    [(1.01, {"float32", "float64"}), (1.5, {"float32", "float64", "bfloat16", "float16"})],
)
def test_wrong_numbers_fail(monkeypatch, capsys, fault, factor, seen):
    """Of 16-bit types one per cent is a few units in the last place."""
    monkeypatch.setattr(fused_lstm.LSTM, "forward", fault(fused_lstm.LSTM.forward, factor))
    assert command.main([]) == 1
    said = capsys.readouterr().out
    lines = re.findall(r"^self-test        cpu (\w+): (.+) is off by .+, allowed are", said, re.M)
    assert seen <= {dtype for dtype, _ in lines}
    where = "gradient of " if fault is too_steep else "y"
    assert all(what.startswith(where) for _, what in lines)


WITHOUT = """
import sys
sys.modules["fused_lstm._C"] = None
from fused_lstm.__main__ import main
sys.exit(main([]))
"""


@pytest.mark.parametrize(("disable", "status"), [("0", 1), ("1", 0)])
def test_an_extension_that_is_missing_fails_unless_it_is_switched_off(disable, status):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env={**os.environ, "PYTHONPATH": str(ROOT), "FUSED_LSTM_DISABLE": disable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == status, result.stderr
    assert re.search(r"^extension +none: ", result.stdout, re.M)
    assert result.stdout.count("fallback: ") == len(_ops.DTYPES)
    assert result.stdout.count(": passed") == len(_ops.DTYPES)


FACTS = {
    **{"lanes": 16, "multiply_ns": 0.25, "l2_bytes": 3 * 2**19, "l2_rate": 96.4},
    **{"shared_rate": 79, "shared_rate_all": 30, "barrier_ns_all": 500, "fork_ns_all": 3000},
}


def test_the_machine_in_numbers():
    """16 multiply-adds in a quarter of a nanosecond are 128 operations in one."""
    alone = "128 GFLOP/s a core; L2 1.5 MiB, 96 GB/s; shared cache 79 GB/s"
    assert command.machine_line({**FACTS, "threads": 1}) == alone
    team = ", 30 with all; barrier 500 ns, starting 2 threads 3000 ns"
    assert command.machine_line({**FACTS, "threads": 2}) == alone + team


@pytest.mark.parametrize(
    ("openmp", "line"), [(True, "yes"), (False, "no: the kernels run on one thread")]
)
def test_a_build_without_openmp_says_so(extension, monkeypatch, openmp, line):
    built = {**extension.build_info(), "openmp": openmp}
    monkeypatch.setattr(extension, "build_info", lambda: built)
    assert dict(command.report())["openmp"] == line


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
