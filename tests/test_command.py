"""``python -m fused_lstm``: its report, its self-test, and arguments that it does not know."""

import pytest

from fused_lstm import __main__ as command
from fused_lstm import _ops


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
