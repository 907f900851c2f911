"""The programs in examples/ learn what their headers say, and draw it."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

import fused_lstm

ROOT = Path(__file__).parent.parent
SKIP_RL = importlib.util.find_spec("sb3_contrib") is None


def numbers(output: str, label: str) -> list[float]:
    """Those in the line that has the label, behind it."""
    (line,) = [line for line in output.splitlines() if label in line]
    return [float(n) for n in re.findall(r"-?\d+\.?\d*(?:e[-+]?\d+)?", line.split(label)[1])]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a program on one thread, in this process; returns what it prints."""
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib").use("Agg")

    def run_example(name: str, *arguments: str) -> str:
        picture = tmp_path / "picture.png"
        path = ROOT / "examples" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [path.name, *arguments, "--picture", str(picture)])
        torch.set_num_threads(1)
        runpy.run_path(str(path), run_name="__main__")
        assert picture.stat().st_size > 5_000
        return capsys.readouterr().out

    return run_example


def in_a_process(command: list[str], name: str, *arguments: str, folder: Path = ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, str(ROOT / "examples" / f"{name}.py"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_example_is_run_here():
    source = Path(__file__).read_text()
    for path in (ROOT / "examples").glob("*.py"):
        assert f'"{path.stem}"' in source


def test_every_example_is_listed_as_what_it_is():
    """First those that train, draw and have a held-out score, in a table of their own the rest."""
    text = (ROOT / "examples" / "README.md").read_text()
    tables = re.split(r"^\| program, without training", text, flags=re.MULTILINE)
    listed = [sorted(re.findall(r"^\| \[(\w+)\.py\]", t, re.MULTILINE)) for t in tables]
    programs = {path.stem: path.read_text() for path in (ROOT / "examples").glob("*.py")}
    trained = {
        name for name, text in programs.items() if "held-out" in text and "--picture" in text
    }
    assert listed == [sorted(trained), sorted(programs.keys() - trained)]


def test_classify(run):
    (accuracy, guessing) = numbers(run("classify", "--epochs", "5"), "held-out accuracy: ")
    assert accuracy > 0.85 > 2 * guessing


def test_regression(run):
    output = run("regression", "--steps", "200")
    assert numbers(output, "held-out R^2: ")[0] > 0.8
    damping, true = numbers(output, "a new sequence: ")
    assert abs(damping - true) < 0.03


def test_weather(run):
    output = run("weather", "--epochs", "20")
    error, naive = numbers(output, "held-out mean error: ")
    (least,) = numbers(output, "what nobody can know: ")
    assert naive - error > 0.5 * (naive - least)
    guess, true = numbers(output, "the day after ")
    assert abs(guess - true) < 1


def test_sentiment(run):
    output = run("sentiment", "--epochs", "3")
    for name in ("complaint", "praise"):
        precision, recall = numbers(output, f"{name}: precision")
        assert precision > 0.95
        assert recall > 0.95
    assert 'the story felt dull": complaint' in output


def test_no_review_is_in_both_parts(monkeypatch):
    pytest.importorskip("rich")
    main, parts = runpy.run_path(str(ROOT / "examples" / "sentiment.py"))["main"], []
    names = main.__globals__
    monkeypatch.setitem(names, "train", lambda model, data, *_: parts.append(data))
    monkeypatch.setitem(names, "scores", lambda model, data, *_: parts.append(data) or {})
    monkeypatch.setattr(sys, "argv", ["sentiment.py"])
    main()
    trained, held = ({text for text, _ in part} for part in parts)
    assert len(trained) == 2000
    assert len(held) == 500
    assert not trained & held


def test_from_scratch(run):
    output = run("from_scratch", "--steps", "120")
    assert numbers(output, "largest difference of outputs and gradients: ")[0] < 1e-5
    assert numbers(output, "held-out accuracy: ")[0] > 0.9


def test_char_lm(run):
    output = run("char_lm", "--epochs", "3")
    bits, by_frequency = numbers(output, "held-out bits a character: ")
    assert bits < 0.85 * by_frequency


def test_switch(run):
    output = run("switch", "--steps", "20")
    assert numbers(output, "before and after the swap: ")[0] < 1e-4
    assert numbers(output, "held-out accuracy: ")[0] > 0.95
    assert "times faster" in output


def test_switch_finds_a_module_of_the_folder_where_it_is_started(tmp_path):
    (tmp_path / "my_file.py").write_text(
        "import torch\n\ndef make():\n    return torch.nn.LSTM(2, 3), (torch.randn(4, 1, 2),)\n"
    )
    output = in_a_process([sys.executable], "switch", "my_file:make", folder=tmp_path)
    assert "times faster" in output


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("switch", ["my_file"], "expected module:function, got 'my_file'"),
        ("switch", [":make"], "expected module:function, got ':make'"),
        ("switch", ["a:b:c"], "expected module:function, got 'a:b:c'"),
        ("classify", ["--epochs", "0"], "expected at least 1 epoch, got 0"),
        ("char_lm", ["--epochs", "-1"], "expected at least 1 epoch, got -1"),
        ("streaming", ["--frames", "0"], "expected at least 1 frame, got 0"),
    ],
)
def test_arguments_that_do_not_fit(monkeypatch, capsys, name, arguments, said):
    pytest.importorskip("rich")
    path = ROOT / "examples" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [path.name, *arguments])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(path), run_name="__main__")
    assert error.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {said}\n")


@pytest.mark.slow
def test_distributed(tmp_path):
    pytest.importorskip("matplotlib")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    picture = tmp_path / "picture.png"
    output = in_a_process(
        [*torchrun, "--nproc-per-node", "2"],
        "distributed",
        *["--steps", "100", "--picture", str(picture)],
    )
    assert numbers(output, "2 processes, parameters differ by ") == [0.0]
    error, always_the_mean = numbers(output, "held-out squared error: ")
    assert error < 0.2 * always_the_mean
    assert picture.exists()


@pytest.mark.slow
@pytest.mark.skipif(SKIP_RL, reason="sb3-contrib is not installed")
@pytest.mark.filterwarnings("ignore")
def test_recurrent_ppo(run, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where stable-baselines3 leaves logs
    output = run("recurrent_ppo", "--steps", "20000")
    assert numbers(output, "of the parameters after one update: ")[0] < 1e-6
    untrained, trained = numbers(output, "held-out return: ")
    assert trained > 3 * untrained


class Policy(nn.Module):
    """As RecurrentPPO's: an LSTM for actions and one for values, states times (1 - start)."""

    def __init__(self):
        super().__init__()
        self.actor, self.critic = nn.LSTM(2, 16), nn.LSTM(2, 16)
        self.action, self.value = nn.Linear(16, 2), nn.Linear(16, 1)

    @staticmethod
    def walk(lstm, features, starts):
        state, outputs = (torch.zeros(1, features.shape[1], 16),) * 2, []
        for step, start in zip(features, starts, strict=True):
            keep = (1.0 - start).view(1, -1, 1)
            output, state = lstm(step.unsqueeze(0), tuple(keep * each for each in state))
            outputs.append(output)
        return torch.cat(outputs)

    def forward(self, features, starts):
        actions = self.action(self.walk(self.actor, features, starts))
        return actions.log_softmax(-1), self.value(self.walk(self.critic, features, starts))


def parameters_after_one_update(fused: bool) -> list[torch.Tensor]:
    """PPO's: the clipped ratio of new and old chances, the values' error, the gradient clipped."""
    torch.manual_seed(0)
    policy, steps = Policy(), (32, 4)
    features, starts = torch.randn(*steps, 2), (torch.rand(steps) < 0.1).float()
    taken, old = torch.randint(2, (*steps, 1)), torch.randn(*steps, 1) / 10 - 0.7
    advantages, returns = torch.randn(*steps, 1), torch.randn(*steps, 1)
    if fused:
        fused_lstm.replace_lstm(policy, say=None)
        assert type(policy.actor) is type(policy.critic) is fused_lstm.LSTM
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3, eps=1e-5)
    chances, values = policy(features, starts)
    ratio = (chances.gather(-1, taken) - old).exp()
    gain = torch.minimum(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean()
    (0.5 * nn.functional.mse_loss(values, returns) - gain).backward()
    nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
    optimizer.step()
    return list(policy.parameters())


def test_an_update_of_a_recurrent_policy_is_the_same(extension):
    """The heart of recurrent_ppo.py, where sb3-contrib is not installed."""
    theirs, ours = map(parameters_after_one_update, (False, True))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_streaming_is_the_same_as_one_call():
    output = in_a_process([sys.executable], "streaming", "--frames", "50")
    assert numbers(output, "largest difference from one call over all frames: ")[0] < 1e-6


@pytest.mark.slow
def test_aot_inductor_computes_in_cpp_what_python_does(extension):
    output = in_a_process([sys.executable, "-W", "ignore"], "aot_inductor")
    assert numbers(output, "largest difference between Python and C++: ")[0] < 1e-6
