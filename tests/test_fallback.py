"""The fallback warns once and says why, can be an error, and never runs where the op could."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from cases import Case

import fused_lstm
from fused_lstm import _ops


def run_python(code, **environment):
    """Run code in a fresh interpreter, where nothing has warned yet."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def said(result):
    """Lines on stderr, without those that torch logs about itself, as "W1121 17:25 torch/..."."""
    return [line for line in result.stderr.splitlines() if not re.match(r"[WE]\d{4} ", line)]


CALL = """
import torch, fused_lstm
for _ in range(3):
    y, _ = fused_lstm.LSTM(3, 4)(torch.randn(5, 2, 3).to(torch.float32))
print(tuple(y.shape))
"""
NO_EXTENSION = "import sys; sys.modules['fused_lstm._C'] = None\n" + CALL


def test_it_warns_once_and_says_why():
    result = run_python(NO_EXTENSION)
    assert result.returncode == 0, result.stderr
    assert "(5, 2, 4)" in result.stdout
    assert result.stderr.count("fused_lstm runs on its plain PyTorch fallback") == 1
    assert "pip install --no-build-isolation ." in result.stderr
    folder = Path(fused_lstm.__file__).parent.parent  # a checkout's, where `make build` helps
    assert f"{folder} hides what was installed: start elsewhere" in result.stderr


@pytest.mark.parametrize(
    "call",
    [
        lambda x: fused_lstm.LSTM(3, 4)(x),
        lambda x: torch.nn.Sequential(fused_lstm.LSTM(3, 4))(x),
        lambda x: fused_lstm.LSTM(3, 4)(x, lengths=torch.tensor([5, 2])),
        lambda x: fused_lstm.LSTM(3, 4).step(x[0]),
        lambda x: fused_lstm.LSTMCell(3, 4)(x[0]),
    ],
    ids=["layer", "model", "lengths", "step", "cell"],
)
def test_the_warning_names_the_line_that_called(monkeypatch, call):
    """Not one of the package or of torch.nn, through which every call goes."""
    monkeypatch.setattr(_ops, "unavailable", lambda device, dtype: "the test says so")
    monkeypatch.setattr(_ops, "_warned", set())
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        call(torch.randn(5, 2, 3))
    (warning,) = [w for w in given if w.category is fused_lstm.FusedLSTMWarning]
    assert warning.filename == __file__


def test_strict_makes_it_an_error():
    result = run_python(NO_EXTENSION, FUSED_LSTM_STRICT="1")
    assert result.returncode != 0
    assert "RuntimeError: fused_lstm runs on its plain PyTorch fallback" in result.stderr


def test_an_extension_of_another_torch_is_not_used(extension):
    code = "import torch\ntorch.__version__ = '2.99.1+cpu'\n" + CALL
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "FusedLSTMWarning" in line]
    assert f"built for torch {torch.__version__} and torch 2.99.1+cpu is running" in line
    assert "pip install --no-build-isolation ." in line
    assert run_python(code, FUSED_LSTM_STRICT="1").returncode != 0


def test_an_extension_that_does_not_load_says_so_in_one_line():
    """As another torch's does: a name that it wants is not there."""
    finder = """
import importlib.abc, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "fused_lstm._C":
            raise ImportError("_C.so: undefined symbol: _ZN2at4mathE\\nand more", name=name)
sys.meta_path.insert(0, Finder())
"""
    result = run_python(finder + CALL)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "FusedLSTMWarning" in line]
    assert f"does not load under torch {torch.__version__} (_C.so: undefined symbol" in line
    assert "build it again" in line


@pytest.mark.parametrize("strict", ["0", "1"])
def test_disable_asks_for_it_and_is_not_warned(strict):
    result = run_python(CALL, FUSED_LSTM_DISABLE="1", FUSED_LSTM_STRICT=strict)
    assert result.returncode == 0, result.stderr
    assert said(result) == []


def test_nothing_is_said_where_the_op_runs(extension):
    result = run_python(CALL, FUSED_LSTM_STRICT="1")
    assert result.returncode == 0, result.stderr
    assert said(result) == []


def test_a_dtype_without_kernel_falls_back(extension, monkeypatch):
    monkeypatch.setattr(_ops, "_warned", set())
    ours = fused_lstm.LSTM(3, 4).to(torch.complex64)
    with pytest.warns(fused_lstm.FusedLSTMWarning, match="no fused kernel for torch.complex64"):
        y, _ = ours(torch.randn(5, 2, 3, dtype=torch.complex64))
    assert y.dtype == torch.complex64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(torch.randn(5, 2, 3, dtype=torch.complex64))


@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_it_is_pytorchs_own_lstm(fallback, kind, monkeypatch):
    """One call for all layers, on the tensors as they are; dropout included."""
    case = Case(layers=3, bidirectional=True, P=2, dropout=0.5, kind=kind)
    theirs, ours = case.modules()
    given, state = case.pack(case.sequences()), case.state()
    calls, own = [], torch.lstm
    monkeypatch.setattr(torch, "lstm", lambda *args: calls.append(1) or own(*args))
    found = []
    for module in (theirs, ours):
        torch.manual_seed(3)
        y, hx = module(given, state)
        found.append([y.data if kind == "packed" else y, *hx])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert len(calls) == 1


def test_a_tensor_class_that_knows_pytorchs_ops_only(extension, monkeypatch):
    """A subclass that refuses every other op gets the same mathematics, and a warning."""

    class Strict(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner):
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            if func.namespace != "aten":
                raise NotImplementedError(f"Strict does not know {func}")
            args, kwargs = torch.utils._pytree.tree_map(
                lambda t: t.inner if isinstance(t, Strict) else t, (args, kwargs or {})
            )
            return torch.utils._pytree.tree_map(
                lambda t: Strict(t) if isinstance(t, torch.Tensor) else t, func(*args, **kwargs)
            )

    monkeypatch.setattr(_ops, "_warned", set())
    x, ours = torch.randn(5, 3, 4), fused_lstm.LSTM(4, 6, 2, bidirectional=True)
    with pytest.warns(fused_lstm.FusedLSTMWarning, match="Strict does not know the fused ops"):
        y, _ = ours(Strict(x))
    torch.testing.assert_close(y.inner, ours(x)[0])
    cell = fused_lstm.LSTMCell(4, 6)
    torch.testing.assert_close(cell(Strict(x[0]))[0].inner, cell(x[0])[0])


def test_meta_tensors(backend):
    y, (h_n, c_n) = fused_lstm.LSTM(3, 4, 2, device="meta")(torch.randn(5, 2, 3, device="meta"))
    assert (y.shape, h_n.shape, c_n.shape) == ((5, 2, 4), (2, 2, 4), (2, 2, 4))
    assert y.device.type == "meta"
