"""torch.compile in the benchmark: no row depends on those before, and none is eager unseen."""

from __future__ import annotations

import functools

import pytest
import torch

pytest.importorskip("rich")

import torch._dynamo

from bench import runner
from bench.providers import PROVIDERS, Provider
from bench.runner import Row
from bench.workloads import DENSE, INFERENCE, Workload

COMPILED = [provider for provider in PROVIDERS.values() if provider.compiles]


@pytest.fixture
def batches(monkeypatch) -> list[int | torch.SymInt]:
    """That of the input of each graph; a graph runs as it is, which takes less time to make."""
    found = []

    def backend(graph, inputs):
        found.extend(t.shape[1] for t in inputs if t.dim() == 3)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setattr(runner, "SHORTEST_BLOCK", 0.0)
    yield found
    torch.compiler.reset()


@pytest.mark.parametrize("provider", COMPILED, ids=lambda provider: provider.name)
def test_every_row_is_compiled_for_its_own_sizes(provider: Provider, batches, extension):
    rows = range(2, 2 + torch._dynamo.config.recompile_limit + 2)
    for batch in rows:
        row = Row(Workload("row", DENSE, batch, 2, 5, (6,)), 1)
        measured = row.measure(INFERENCE, [provider], budget=0).measurements[provider.name]
        assert measured.seconds, measured.failed
    assert batches == list(rows)
    assert all(type(batch) is int for batch in batches)  # the program is for this one only


@pytest.mark.parametrize("provider", COMPILED, ids=lambda provider: provider.name)
def test_what_was_compiled_too_often_fails(provider: Provider, batches):
    with provider.settings(), torch._dynamo.config.patch(recompile_limit=1):
        model = torch.compile(torch.nn.Linear(3, 3))
        model(torch.ones(2, 3))
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            model(torch.ones(2, 3, dtype=torch.float64).requires_grad_())
