"""explain() says which algorithm runs each layer, and why."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fused_lstm
from fused_lstm import _ops, sequences


def test_one_line_per_layer(extension):
    module = fused_lstm.LSTM(8, 16, 3, bidirectional=True)
    text = fused_lstm.explain(module, torch.randn(5, 2, 8))
    head, *rest = text.splitlines()
    assert head.startswith(
        "LSTM(8, 16, num_layers=3, bidirectional=True): 5 steps, batch 2, float32"
    )
    assert head.endswith("gradients recorded")
    for layer in range(3):
        (line,) = [line for line in rest if line.startswith(f"  layer {layer}: ")]
        algorithm, why = line.removeprefix(f"  layer {layer}: ").split(": ", 1)
        assert algorithm
        assert why


def test_inference_packed_unbatched_and_cell(extension):
    module = fused_lstm.LSTM(8, 16, batch_first=True)
    with torch.no_grad():
        assert "7 steps, batch 2, float32 on cpu" in fused_lstm.explain(
            module, torch.randn(2, 7, 8)
        )
        assert fused_lstm.explain(module, torch.randn(7, 8)).count("7 steps, batch 1,") == 1
        packed = pack_sequence([torch.randn(4, 8), torch.randn(2, 8)])
        assert "4 steps, batch 2 (packed)" in fused_lstm.explain(module, packed)
        assert "inference" in fused_lstm.explain(module, packed)
        assert "1 steps, batch 3" in fused_lstm.explain(
            fused_lstm.LSTMCell(8, 16), torch.randn(3, 8)
        )


def test_it_plans_what_would_run(extension, monkeypatch):
    """The planner is asked about the second layer's own input size, and the call's dtype."""
    asked = []
    plan = _ops.extension.plan

    def spy(**arguments):
        asked.append(arguments)
        return plan(**arguments)

    monkeypatch.setattr(_ops.extension, "plan", spy)
    module = fused_lstm.LSTM(8, 16, 2, proj_size=3, bidirectional=True)
    with torch.autocast("cpu", torch.bfloat16):
        fused_lstm.explain(module, torch.randn(5, 2, 8))
    assert [a["input_size"] for a in asked] == [8, 6]
    assert all(a["dtype"] == "bfloat16" and a["directions"] == 2 for a in asked)
    assert all(a["proj_size"] == 3 and a["training"] for a in asked)


def test_what_is_frozen_is_inference(extension):
    """Gradients are recorded where something requires one, whatever mode there is."""
    module, x = fused_lstm.LSTM(8, 16), torch.randn(5, 2, 8)
    assert fused_lstm.explain(module, x).splitlines()[0].endswith(", gradients recorded")
    module.requires_grad_(False)
    assert fused_lstm.explain(module, x).splitlines()[0].endswith(", inference")
    x.requires_grad_()
    assert fused_lstm.explain(module, x).splitlines()[0].endswith(", gradients recorded")


def test_autocast_leaves_float64_alone(extension):
    module, x = fused_lstm.LSTM(8, 16).double(), torch.randn(5, 2, 8).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x)[0].dtype == torch.float64
        assert "batch 2, float64 on cpu" in fused_lstm.explain(module, x)


def test_rejected_plans_have_a_line_each(extension, monkeypatch):
    def plan(**arguments):
        return {
            "algorithm": "grid",
            "why": "it fits",
            "blocks": 64,
            "rejected": ["a: 1", "b: 2"],
        }

    monkeypatch.setattr(_ops.extension, "plan", plan)
    text = fused_lstm.explain(fused_lstm.LSTM(8, 16), torch.randn(5, 2, 8))
    assert text.splitlines()[1:] == [
        "  layer 0: grid: it fits",
        "    blocks=64",
        "    rejected a: 1",
        "    rejected b: 2",
    ]


def test_it_says_what_the_call_then_runs(extension):
    """Threads and plan, on as many threads as there are and where a call has only one."""
    module, x = fused_lstm.LSTM(60, 256), torch.randn(50, 32, 60)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with torch.no_grad():
            text = fused_lstm.explain(module, x)
            module(x)
        ran = extension.last_cpu_plan()
        assert f"on cpu, {threads} threads" in text
        for name in ("threads", "rows", "units", "fold", "chunk"):
            assert f"{name}={ran[name]}" in text


def test_the_fallback_is_explained(fallback):
    text = fused_lstm.explain(fused_lstm.LSTM(8, 16), torch.randn(5, 2, 8))
    assert text.splitlines()[1] == "  every layer: plain PyTorch: the test says so"


def test_other_modules_are_refused():
    with pytest.raises(TypeError, match=r"got torch\.nn\.modules\.rnn\.LSTM"):
        fused_lstm.explain(nn.LSTM(8, 16), torch.randn(5, 2, 8))


@pytest.mark.parametrize("make", [fused_lstm.LSTM, fused_lstm.LSTMCell])
@pytest.mark.parametrize("dims", [0, 1, 3, 4])
def test_inputs_of_other_dimensions_are_refused(extension, make, dims):
    """As the module itself refuses them; a cell takes one dimension, a layer three."""
    module, x = make(3, 4), torch.randn([3] * dims)
    if dims == (1 if make is fused_lstm.LSTMCell else 3):
        assert fused_lstm.explain(module, x)
        return
    wanted = "1D or 2D" if make is fused_lstm.LSTMCell else "2D or 3D"
    with pytest.raises(ValueError, match=f"expected input to be {wanted}, got {dims}D"):
        fused_lstm.explain(module, x)


def test_segments(extension):
    """What the kernels walk: the pieces of rows, the longest first."""
    module = fused_lstm.LSTM(4, 8, batch_first=True, recompute=4)
    x = torch.randn(3, 5, 4)
    reset = torch.zeros(3, 5, dtype=torch.bool)
    reset[0, [0, 3]] = True
    lengths = torch.tensor([5, 0, 2])
    text = fused_lstm.explain(module, x, lengths=lengths, reset=reset)
    assert "3 steps, batch 3 (3 rows of 5 steps in segments)" in text
    assert "recompute: c is kept before every block of 4 steps, gates are not" in text
    with torch.no_grad():
        text = fused_lstm.explain(module, x, lengths=lengths)
    assert "5 steps, batch 2" in text
    assert "recompute: of no effect: nothing is kept in inference" in text
    assert "nothing to compute" in fused_lstm.explain(module, x, lengths=lengths * 0)


def test_cells_and_gates(extension, monkeypatch):
    """They are the last layer's, which keeps everything, or runs by steps where no kernel does."""
    module, x = fused_lstm.LSTM(4, 8, 2, recompute=4), torch.randn(5, 3, 4)
    kept = "c and the gates of every step are kept, for the caller"
    assert kept not in fused_lstm.explain(module, x)
    for asked in ("return_cells", "return_gates"):
        first, second = fused_lstm.explain(module, x, **{asked: True}).split("  layer 1: ")
        assert "gates are not, but for the last layer, whose own are returned" in first
        assert kept not in first
        assert second.endswith(kept)
    monkeypatch.setattr(sequences, "unavailable", lambda data: "no kernel on this device")
    first, second = fused_lstm.explain(module, x, return_cells=True).split("  layer 1: ")
    assert "recompute: of no effect: no kernel on this device" in first
    assert "plain PyTorch" not in first
    assert second == "plain PyTorch, step by step: no kernel on this device"


@pytest.mark.parametrize("batch_first", [False, True])
def test_resets_of_an_unbatched_sequence(extension, batch_first):
    module, reset = fused_lstm.LSTM(4, 8, batch_first=batch_first), torch.zeros(5, dtype=torch.bool)
    x = torch.randn(5, 4)
    assert "5 steps, batch 1 (1 rows of 5 steps in segments)" in fused_lstm.explain(
        module, x, reset=reset
    )
    reset[[0, 3]] = True
    assert "3 steps, batch 2 (1 rows of 5 steps" in fused_lstm.explain(module, x, reset=reset)


@pytest.mark.parametrize("options", [{}, {"return_cells": True}], ids=["plain", "cells"])
@pytest.mark.parametrize("T", [2, 40])
def test_steps_that_are_computed_again(extension, T, options):
    """They are so as they were: with as few rows as here, by the weights as they lie."""
    module, x = fused_lstm.LSTM(8, 200, recompute=2), torch.randn(T, 1, 8)
    module(x, **options)[0].sum().backward()
    ran = extension.last_cpu_plan(backward=True)["algorithm"]
    assert f"backward_algorithm={ran}" in fused_lstm.explain(module, x, **options)
    assert ran == ("dot" if T == 2 and not options else "panels")


X, RESET = torch.randn(5, 3, 4), torch.zeros(5, 3, dtype=torch.bool)
REFUSED = {
    "beyond T": (
        dict(lengths=torch.tensor([5, 9, 2])),
        "from 0 to 5, the steps of the input, got 9 for row 1",
    ),
    "negative": (dict(lengths=torch.tensor([5, 3, -1])), "from 0 to 5, .* got -1 for row 2"),
    "lengths of another batch": (
        dict(lengths=torch.tensor([5, 3])),
        r"expected lengths of shape \[3\], got \[2\]",
    ),
    "a list": (dict(lengths=[5, 3, 2]), "expected lengths as a tensor, got list"),
    "a mask of another shape": (dict(reset=RESET.t()), r"expected reset of shape \[5, 3\]"),
    "features": (dict(input=X[..., :3]), "expected input of 4 features, got 3"),
    "no steps": (dict(input=X[:0]), "Expected sequence length to be larger than 0"),
    "packed and lengths": (
        dict(input=pack_sequence([X[:, 0]]), lengths=torch.tensor([5])),
        "a PackedSequence has lengths",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_calls_that_the_layer_refuses(extension, name):
    options, words = REFUSED[name]
    input, module = options.get("input", X), fused_lstm.LSTM(4, 8)
    options = {key: value for key, value in options.items() if key != "input"}
    with pytest.raises((TypeError, ValueError), match=words) as ours:
        fused_lstm.explain(module, input, **options)
    with pytest.raises((TypeError, ValueError, RuntimeError)) as theirs:
        module(input, **options)
    if name != "features":  # which is what torch.nn.LSTM of the release says
        assert str(theirs.value).removeprefix("fused_lstm: ") == str(ours.value)


@pytest.mark.parametrize(
    ("recompute", "words"),
    [(-1, "at least 0, got -1"), (2.5, "as an int, got float"), ("a", "as an int, got str")],
)
def test_recompute_is_checked_as_in_a_call(extension, recompute, words):
    module = fused_lstm.LSTM(4, 8, recompute=recompute)
    for run in (module, lambda x: fused_lstm.explain(module, x)):
        with pytest.raises((TypeError, ValueError), match=f"expected recompute.*{words}"):
            run(X)


@pytest.mark.parametrize(
    ("name", "value"), [("lengths", torch.tensor([1])), ("reset", RESET), ("return_cells", True)]
)
def test_a_cell_has_no_sequences(extension, name, value):
    with pytest.raises(TypeError, match=f"expected input alone for an LSTMCell, got {name}"):
        fused_lstm.explain(fused_lstm.LSTMCell(4, 8), X[0], **{name: value})
    with pytest.raises(ValueError, match="expected input of 4 features, got 3"):
        fused_lstm.explain(fused_lstm.LSTMCell(4, 8), X[0, :, :3])
