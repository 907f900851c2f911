"""torch.export, for inference and for training; AOTInductor; ONNX."""

import warnings

import pytest
import torch
from cases import Case
from torch import nn

import fused_lstm


def targets(program) -> list[str]:
    nodes = program.graph.nodes
    return [str(n.target) for n in nodes if n.op == "call_function" and "lstm" in str(n.target)]


def exported(module, x, *, strict=False):
    steps = torch.export.Dim("steps", min=2, max=1000)
    return torch.export.export(module, (x,), dynamic_shapes=({0: steps}, None)[:1], strict=strict)


CASES = {"plain": Case(), "all": Case(layers=2, bidirectional=True, P=2)}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_inference(extension, device, name, strict):
    """One op per layer, nothing saved, any length."""
    case = CASES[name].with_(device=device)
    _, ours = case.modules()
    with torch.no_grad():
        program = exported(ours.eval(), torch.randn(5, 3, 4, device=device), strict=strict)
        for whole in (program, program.run_decompositions()):
            assert targets(whole) == ["fused_lstm.lstm.default"] * case.layers
            x = torch.randn(9, 3, 4, device=device)
            torch.testing.assert_close(whole.module()(x), ours(x))


@pytest.mark.parametrize("decomposed", [False, True])
def test_training(extension, device, decomposed):
    """The exported program has the layer's gradients, and moves its own weights."""
    case = CASES["all"].with_(device=device)
    theirs, ours = case.modules()
    program = exported(ours, torch.randn(5, 3, 4, device=device))
    if decomposed:
        program = program.run_decompositions()
    trained = program.module()
    x = torch.randn(9, 3, 4, device=device)
    for module in (theirs, trained):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            module(x)[0].sin().sum().backward()
            optimizer.step()
    torch.testing.assert_close(trained(x), theirs(x))


def test_packed_rows(extension):
    """Packed input is a tuple of tensors to export; the batch comes from the order of the rows."""
    case = Case(kind="packed", layers=2)
    _, ours = case.modules()

    class OfRows(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = ours

        def forward(self, data, sizes, order, back):
            packed = nn.utils.rnn.PackedSequence(data, sizes, order, back)
            y, (h_n, c_n) = self.lstm(packed)
            return y.data, h_n, c_n

    packed = case.pack(case.sequences())
    program = torch.export.export(OfRows(), tuple(packed))
    torch.testing.assert_close(program.module()(*packed), OfRows()(*packed))


def test_a_cell(extension):
    cell = fused_lstm.LSTMCell(4, 6)
    arguments = (torch.randn(3, 4), (torch.randn(3, 6), torch.randn(3, 6)))
    program = torch.export.export(cell, arguments)
    torch.testing.assert_close(program.module()(*arguments), cell(*arguments))


def test_save_and_load(extension, tmp_path):
    _, ours = CASES["all"].modules()
    x = torch.randn(5, 3, 4)
    torch.export.save(exported(ours, x), tmp_path / "layer.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "layer.pt2").module()(x), ours(x))


@pytest.mark.slow
def test_aot_inductor(extension, tmp_path):
    _, ours = CASES["all"].modules()
    with torch.no_grad():
        program = exported(ours, torch.randn(5, 3, 4))
        path = str(tmp_path / "layer.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        x = torch.randn(9, 3, 4)
        found = torch._inductor.aoti_load_package(path)(x)  # flat in some releases
        torch.testing.assert_close(torch.utils._pytree.tree_leaves(found), list(flat(ours(x))))


def flat(result) -> tuple:
    y, (h_n, c_n) = result
    return y, h_n, c_n


class WithState(nn.Module):
    """States as arguments of their own, which the exporter can name."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, x, h0=None, c0=None):
        return self.lstm(x, None if h0 is None else (h0, c0))


ONNX_CASES = {
    "plain": Case(hx=False),
    "layers, directions, state": Case(layers=2, bidirectional=True),
    "batch first, no bias": Case(batch_first=True, bias=False),
    "state, batch first, directions": Case(batch_first=True, bidirectional=True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ONNX_CASES)
def test_onnx(extension, tmp_path, name):
    """The standard operator, run by onnxruntime, on another length than the exported one."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    case = ONNX_CASES[name]
    _, ours = case.modules()
    state = case.state() if case.hx else ()
    arguments = (case.pack(case.sequences()), *state)
    program = torch.onnx.export(
        WithState(ours),
        arguments,
        dynamo=True,
        verbose=False,
        dynamic_shapes=({1 if case.batch_first else 0: "steps"}, *[None] * len(state)),
    )
    kinds = [node.op_type for node in program.model.graph]
    assert kinds.count("LSTM") == case.layers
    assert len(kinds) < 8 * case.layers  # the weights were put in order when it was exported
    program.save(tmp_path / "layer.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx")
    longer = case.with_(T=9)
    arguments = (longer.pack(longer.sequences()), *state)
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, {n: t.numpy() for n, t in zip(names, arguments, strict=True)})
    with torch.no_grad():
        expected = flat(WithState(ours)(*arguments))
    torch.testing.assert_close(tuple(map(torch.from_numpy, found)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [False, True])
def test_onnx_of_a_layer_that_recomputes(extension, training):
    """It is how a layer trains, and says nothing of its results."""
    pytest.importorskip("onnxscript")
    ours = fused_lstm.LSTM(4, 6, 2, recompute=64).train(training)
    program = torch.onnx.export(ours, (torch.randn(5, 3, 4),), dynamo=True, verbose=False)
    assert [node.op_type for node in program.model.graph].count("LSTM") == 2


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_a_cell(extension, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    cell = fused_lstm.LSTMCell(4, 6)
    arguments = torch.randn(3, 4), torch.randn(3, 6), torch.randn(3, 6)
    torch.onnx.export(WithState(cell), arguments, dynamo=True, verbose=False).save(
        tmp_path / "cell.onnx"
    )
    session = onnxruntime.InferenceSession(tmp_path / "cell.onnx")
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, {n: t.numpy() for n, t in zip(names, arguments, strict=True)})
    expected = cell(arguments[0], arguments[1:])
    torch.testing.assert_close(tuple(map(torch.from_numpy, found)), expected)


class WithOptions(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.lstm, self.options = fused_lstm.LSTM(4, 6), options

    def forward(self, x):
        return self.lstm(x, **self.options)


def refused(module, input) -> list[str]:
    """What is said while the exporter fails."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(Exception, match=""):  # noqa: PT011 (the exporter's own kinds)
            torch.onnx.export(module, (input,), dynamo=True, verbose=False)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case(P=2, hx=False), "ONNX's LSTM has no projection"),
        (Case(kind="packed", hx=False), "ONNX's LSTM takes no packed input"),
    ],
)
def test_onnx_refuses_what_its_operator_lacks(extension, case, reason):
    pytest.importorskip("onnxscript")
    _, ours = case.modules()
    assert any(reason in said for said in refused(ours, case.pack(case.sequences())))


@pytest.mark.parametrize(
    "options",
    [
        dict(lengths=torch.tensor([5, 1, 2])),
        dict(reset=torch.ones(5, 3, dtype=torch.bool)),
        dict(return_cells=True),
        dict(return_gates=True),
    ],
    ids=lambda options: next(iter(options)),
)
def test_onnx_refuses_options(extension, options):
    pytest.importorskip("onnxscript")
    with torch.no_grad():
        said = refused(WithOptions(**options), torch.randn(5, 3, 4))
    assert any("lengths, resets, cells and gates are not exported to ONNX" in each for each in said)
