"""The README's table of what runs in a kernel: every cell is tried."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import fused_lstm
from fused_lstm import _ops, sequences

README = (Path(__file__).parent.parent / "README.md").read_text()
OURS = re.compile(r"fused_lstm::lstm")
# What an LSTM that is not a kernel has to call: PyTorch's own, or its nonlinearities.
THEIRS = re.compile(r"aten::(_thnn_fused_)?(lstm|sigmoid|tanh|mkldnn_rnn|miopen_rnn|_cudnn_rnn)")
FEATURES: dict[str, Callable[[torch.dtype, str], object]] = {}


def feature(name: str):
    """Registers a function that uses a row's feature, so that its calls can be watched."""

    def register(function):
        FEATURES[name] = function
        return function

    return register


def layer(dtype, device, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that complex modules are new
        return fused_lstm.LSTM(3, 4, **options).to(device, dtype)


def inputs(dtype, device, *shape):
    return torch.randn(*(shape or (5, 2, 3)), dtype=dtype, device=device)


def size(*tensors: Tensor) -> Tensor:
    """One real number that depends on all of them."""
    return sum((t * t.conj()).real.sum() for t in tensors)


@feature("layers, directions, states, unbatched input")
@torch.no_grad()
def options(dtype, device):
    lstm = layer(dtype, device, num_layers=2, bidirectional=True)
    state = inputs(dtype, device, 4, 2, 4)
    lstm(inputs(dtype, device), (state, state))
    lstm(inputs(dtype, device, 5, 3))


@feature("`proj_size`")
@torch.no_grad()
def projection(dtype, device):
    layer(dtype, device, proj_size=2)(inputs(dtype, device))


@feature("packed input")
@torch.no_grad()
def packed(dtype, device):
    sequences = [inputs(dtype, device, n, 3) for n in (2, 5)]
    layer(dtype, device)(pack_sequence(sequences, enforce_sorted=False))


@feature("`LSTMCell`")
@torch.no_grad()
def cell(dtype, device):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cell = fused_lstm.LSTMCell(3, 4).to(device, dtype)
    cell(inputs(dtype, device, 2, 3))


@feature("training: every gradient")
def training(dtype, device):
    lstm, x = layer(dtype, device), inputs(dtype, device).requires_grad_()
    size(lstm(x)[0]).backward()
    assert all(t.grad is not None for t in (x, *lstm.parameters()))


@feature("backward in eval mode")
def eval_mode(dtype, device):
    size(layer(dtype, device).eval()(inputs(dtype, device))[0]).backward()


@feature("autocast to bfloat16")
def under_autocast(dtype, device):
    with torch.autocast(device, torch.bfloat16):
        y, _ = layer(dtype, device)(inputs(dtype, device))
    size(y).backward()


@feature("`vmap` over inputs")
@torch.no_grad()
def mapped(dtype, device):
    lstm = layer(dtype, device)
    torch.func.vmap(lambda x: lstm(x)[0])(inputs(dtype, device, 3, 5, 2, 3))


@feature("`vmap` over weights: ensembles")
def ensemble(dtype, device):
    members = [layer(dtype, device) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(members)
    x = inputs(dtype, device)

    def member(weights):
        return torch.func.functional_call(members[0], weights, (x,))[0]

    size(torch.func.vmap(member)(weights)).backward()
    assert all(weight.grad is not None for weight in weights.values())


@feature("`vmap` of `grad`: per-sample gradients")
def per_sample(dtype, device):
    lstm = layer(dtype, device)

    def loss(parameters, x):
        return size(torch.func.functional_call(lstm, parameters, (x,))[0])

    gradient = torch.func.grad(loss)
    torch.func.vmap(gradient, (None, 0))(
        dict(lstm.named_parameters()), inputs(dtype, device, 3, 5, 2, 3)
    )


@feature("second derivatives")
def second_derivatives(dtype, device):
    lstm, x = layer(dtype, device), inputs(dtype, device).requires_grad_()
    (dx,) = torch.autograd.grad(size(lstm(x)[0]), x, create_graph=True)
    size(dx).backward()


@feature("forward-mode derivatives")
def forward_mode(dtype, device):
    lstm, x = layer(dtype, device), inputs(dtype, device)
    torch.func.jvp(lambda x: lstm(x)[0], (x,), (x,))


@feature("`torch.compile`, without a graph break")
def compiled(dtype, device):
    torch._dynamo.reset()
    lstm = layer(dtype, device)
    size(torch.compile(lstm, backend="aot_eager", fullgraph=True)(inputs(dtype, device))[0])


@feature("`torch.export`")
@torch.no_grad()
def exported(dtype, device):
    x = inputs(dtype, device)
    torch.export.export(layer(dtype, device), (x,)).module()(x)


@feature("`torch.jit.trace`")
@torch.no_grad()
def traced(dtype, device):
    x = inputs(dtype, device)
    torch.jit.trace(layer(dtype, device), (x,), check_trace=False)(x)


@feature("`torch.jit.script`")
def scripted(dtype, device):
    torch.jit.script(layer(dtype, device))


def tables() -> list[list[tuple[str, str, str]]]:
    """Of both tables in the README: feature, column and what it says there."""
    section = README.split("## What runs in a kernel?")[1].split("\n## ")[0]
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        header, _, *rows = [line.strip("| ").split(" | ") for line in block.splitlines()]
        found.append(
            [
                (row[0], column, said)
                for row in rows
                for column, said in zip(header[1:], row[1:], strict=True)
            ]
        )
    return found


BY_DTYPE, BY_DEVICE = tables()


def operations(use: Callable[[], object]) -> set[str]:
    """Names of the operations that are called."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        use()
    return {event.key for event in profile.key_averages()}


def what_runs(use: Callable, dtype: torch.dtype, device: str) -> str:
    """ "kernel", "PyTorch" or "error", by the operations that are called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            names = operations(lambda: use(dtype, device))
        except Exception:
            return "error"
    if any(THEIRS.match(name) for name in names):
        return "PyTorch"
    assert any(OURS.match(name) for name in names)
    return "kernel"


def what_runs_with(dtype, device, **options) -> str:
    """The same of a call of two layers with options. PyTorch's work is warned of, no other is."""
    lstm, x = layer(dtype, device, num_layers=2), inputs(dtype, device)
    _ops._warned.clear()  # a reason is given once
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = operations(lambda: size(lstm(x, **options)[0]).backward())
    warned = any(w.category is fused_lstm.FusedLSTMWarning for w in caught)
    assert warned == any(THEIRS.match(name) for name in names)
    if not warned:
        return "kernel"
    return "PyTorch, in the last layer" if any(OURS.match(name) for name in names) else "PyTorch"


def with_lengths(dtype, device):
    return what_runs_with(dtype, device, lengths=torch.tensor([5, 3]))


def with_resets(dtype, device):
    reset = torch.arange(10).view(5, 2) % 3 == 0
    found = what_runs_with(dtype, device, reset=reset)
    state = inputs(dtype, device, 2, 1, 4)
    assert what_runs_with(dtype, device, reset=reset, reset_hx=(state, state)) == found
    return found


def with_cells(dtype, device):
    return what_runs_with(dtype, device, return_cells=True, return_gates=True)


def with_recompute(dtype, device):
    kept = []
    for recompute in (0, 4):
        lstm, x = layer(dtype, device, recompute=recompute), inputs(dtype, device, 50, 2, 3)
        sizes = []
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        )
        with keep:
            names = operations(lambda lstm=lstm, x=x: lstm(x))
        assert any(OURS.match(name) for name in names)
        kept.append(sum(sizes))
    return "kernel" if kept[1] < kept[0] / 2 else "without effect"


def mapped_sequences(dtype, device):
    lstm, xs = layer(dtype, device), inputs(dtype, device, 2, 5, 2, 3)
    lengths = torch.tensor([[5, 3], [2, 4]])

    def use(dtype, device):
        with torch.no_grad():
            torch.func.vmap(lambda x, lengths: lstm(x, lengths=lengths)[0])(xs, lengths)

    return what_runs(use, dtype, device)


def streamed(dtype, device):
    stream = layer(dtype, device).stream(2)
    names = operations(lambda: stream(inputs(dtype, device)))
    if stream._kernels is not None:
        return "kernel"
    assert any(OURS.match(name) for name in names)
    return "kernel, on weights as they lie"


OPTIONS = {
    "`lengths=`": with_lengths,
    "`reset=`, `reset_hx=`": with_resets,
    "`return_cells=`, `return_gates=`": with_cells,
    "`recompute=`": with_recompute,
    "`vmap` over inputs, lengths, resets and states of such calls": mapped_sequences,
    "`stream()`": streamed,
}


def test_every_row_is_tried():
    assert [row for row, column, _ in BY_DTYPE if column == "float32"] == list(FEATURES)
    assert [row for row, column, _ in BY_DEVICE if column == "CPU"] == list(OPTIONS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", FEATURES)
def test_the_table_is_true(extension, device, monkeypatch, row):
    monkeypatch.setattr(_ops, "_warned", set())
    said = {dtype: cell for name, dtype, cell in BY_DTYPE if name == row}
    found = {dtype: what_runs(FEATURES[row], getattr(torch, dtype), device) for dtype in said}
    assert found == said


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", OPTIONS)
def test_the_table_of_devices_is_true(extension, device, monkeypatch, row, dtype):
    """Of CUDA also without a GPU: all of it but streams turns on what unavailable() says."""
    monkeypatch.setattr(_ops, "_warned", set())
    said = {column: cell for name, column, cell in BY_DEVICE if name == row}
    assert OPTIONS[row](dtype, device) == said[device.upper()]
    if device == "cpu" and OPTIONS[row] is not streamed:
        monkeypatch.setattr(sequences, "unavailable", lambda x: "no kernel yet")
        assert OPTIONS[row](dtype, device) == said["CUDA"]


def test_the_switches_are_all_there():
    """Every variable that the code reads has a row in the README's table, and no other has."""
    root = Path(__file__).parent.parent
    files = [root / "setup.py", *root.glob("fused_lstm/*.py"), *root.glob("csrc/**/*.[ch]*")]
    text = "".join(path.read_text() for path in files)
    quoted = set(re.findall(r'["`( ](FUSED_LSTM_[A-Z_]+)["`=)]', text))
    read = {name for name in quoted if re.search(rf'(getenv|get|switch|on)\("{name}"', text)}
    documented = set(re.findall(r"^\| `(FUSED_LSTM_[A-Z_]+)", README, re.MULTILINE))
    assert documented == read
