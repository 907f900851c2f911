"""Lengths, resets, cells, gates and recompute where the fused ops do not run."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from cases import Case
from torch.nn.utils.rnn import pack_padded_sequence

import fused_lstm
from fused_lstm import _ops

FOLDER = os.path.dirname(__file__)
CASE = Case(T=5, B=3, I=4, H=6, layers=2, bidirectional=True)
RESET = torch.zeros(5, 3, dtype=torch.bool)
RESET[2, 1] = RESET[0, 0] = True
OPTIONS = {
    "recompute": {},
    "lengths": dict(lengths=torch.tensor([5, 0, 2])),
    "reset": dict(reset=RESET),
    "reset_hx": dict(reset=RESET, reset_hx=(torch.ones(4, 1, 6), torch.ones(4, 1, 6))),
    "cells": dict(return_cells=True),
    "gates": dict(return_gates=True),
    "all": dict(lengths=torch.tensor([5, 0, 2]), reset=RESET, return_cells=True, return_gates=True),
}
# Every call of them in a fresh interpreter, as the suite cannot take the extension out of this one.
CALLS = """
import sys, warnings
sys.path.insert(0, {folder!r})
{before}
import torch, fused_lstm
from test_sequences_fallback import CASE, OPTIONS, module_for
torch.manual_seed(1)
for name, options in OPTIONS.items():
    for autocast in (False, True):
        module, x = module_for(name), torch.randn(5, 3, 4)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results = module(x, **options)
        results[0].float().sum().backward()
        assert all(p.grad is not None for p in module.parameters()), name
        assert results[0].shape == (5, 3, 12), name
        print(name, len(results))
"""


def module_for(name, **changes):
    _, module = CASE.with_(**changes).modules()
    module.recompute = 2 if name in ("recompute", "all") else 0
    return module


def run_python(before, **environment):
    return subprocess.run(
        [sys.executable, "-c", CALLS.format(before=before, folder=FOLDER)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


NO_EXTENSION = "sys.modules['fused_lstm._C'] = None"


def test_without_the_extension_they_run_and_warn_once():
    result = run_python(NO_EXTENSION)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2 * len(OPTIONS)
    assert result.stderr.count("fused_lstm runs on its plain PyTorch fallback") == 1


def test_disabled_they_run_no_fused_op_and_do_not_warn(extension):
    """Nothing is said, and no op of the library is called."""
    before = """
from torch.utils._python_dispatch import TorchDispatchMode
class NoFusedOp(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        assert op.namespace != "fused_lstm", op
        return op(*args, **(kwargs or {}))
NoFusedOp().__enter__()
"""
    result = run_python(before, FUSED_LSTM_DISABLE="1", FUSED_LSTM_STRICT="1")
    assert result.returncode == 0, result.stderr
    assert "fallback" not in result.stderr


@pytest.mark.parametrize("name", OPTIONS)
def test_strict_makes_each_an_error(extension, monkeypatch, name):
    monkeypatch.setattr(_ops, "unavailable", lambda device, dtype: "the test says so")
    monkeypatch.setenv("FUSED_LSTM_STRICT", "1")
    with pytest.raises(RuntimeError, match=r"the test says so \(FUSED_LSTM_STRICT=1"):
        module_for(name)(torch.randn(5, 3, 4), **OPTIONS[name])


PADDED_ONLY = {"lengths", "reset"}
FORMS = [
    (name, form)
    for name, options in OPTIONS.items()
    for form in ("dense", "packed")
    if form == "dense" or not PADDED_ONLY & {*options}
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_values_are_those_of_the_ops(extension, monkeypatch, name, form):
    options, module = OPTIONS[name], module_for(name)
    input = torch.randn(5, 3, 4)
    if form == "packed":
        input = pack_padded_sequence(input, torch.tensor([5, 3, 3]))
    expected = flat(module(input, **options))
    monkeypatch.setattr(_ops, "_warned", set())
    monkeypatch.setattr(_ops, "unavailable", lambda device, dtype: "the test says so")
    with pytest.warns(fused_lstm.FusedLSTMWarning, match="the test says so") as said:
        found = flat(module(input, **options))
    assert len(said) == 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    wanted = [
        torch.autograd.grad(t[0].sin().sum(), [*module.parameters()]) for t in (found, expected)
    ]
    torch.testing.assert_close(*wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_dtype_without_kernels(extension, monkeypatch, name):
    monkeypatch.setattr(_ops, "_warned", set())
    module = module_for(name).to(torch.complex64)
    x = torch.randn(5, 3, 4).to(torch.complex64)
    with pytest.warns(fused_lstm.FusedLSTMWarning, match="no fused kernel for torch.complex64"):
        y = module(x, **OPTIONS[name])[0]
    assert y.dtype == torch.complex64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x, **OPTIONS[name])


def test_recompute_alone_is_pytorchs_own_lstm(fallback):
    """As of a call without options: one call for all layers, dropout included."""
    theirs, _ = CASE.with_(dropout=0.5).modules()
    module = module_for("recompute", dropout=0.5)
    module.load_state_dict(theirs.state_dict())
    x, found = torch.randn(5, 3, 4), []
    for layer in (theirs, module):
        torch.manual_seed(3)
        found.append(flat(layer(x)))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def flat(results):
    """All tensors of the results."""
    output, state, *inside = results
    found = [output, *inside]
    return [*(t if isinstance(t, torch.Tensor) else t.data for t in found), *state]
