"""torch.compile takes the layer whole: no graph break, one op per layer, the same results."""

import pytest
import torch
from cases import Case


@pytest.mark.parametrize(
    "case", [Case(), Case(layers=2, bidirectional=True, P=2, batch_first=True)]
)
def test_forward_and_backward_without_a_graph_break(extension, device, case):
    _, ours = case.with_(device=device).modules()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    found = []
    for module in (ours, compiled):
        x = torch.arange(60.0, device=device).view(5, 3, 4).cos().requires_grad_()
        if case.batch_first:
            x = x.detach().transpose(0, 1).requires_grad_()
        y, (h_n, c_n) = module(x)
        ours.zero_grad()
        (y.sin().sum() + h_n.sum() + c_n.sum()).backward()
        found.append([y, h_n, c_n, x.grad, *(p.grad.clone() for p in ours.parameters())])
    torch.testing.assert_close(found[1], found[0])


def test_export(extension, device):
    _, ours = Case(layers=2, device=device).modules()
    x = torch.randn(5, 3, 4, device=device)
    program = torch.export.export(ours.eval(), (x,))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("fused_lstm.lstm_layer.default") == 2
    torch.testing.assert_close(program.module()(x), ours(x))
