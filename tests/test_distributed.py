"""Data parallel training in two processes, and weights as DTensors, against one process alone."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import fused_lstm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed"),
]
WORLD = 2


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = fused_lstm.LSTM(4, 6, 2, bidirectional=True, proj_size=3)
        self.cell = fused_lstm.LSTMCell(6, 5)

    def forward(self, x):
        h, c = self.cell(self.lstm(x)[0][-1])
        return h.sin() + c


def make_model() -> Model:
    torch.manual_seed(0)
    return Model()


def batch_of(rank: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * rank + step)
    return torch.randn(5, 3, 4, generator=generator)


def train(model: nn.Module, batches) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches:
        optimizer.zero_grad()
        model(batch).mean().backward()
        optimizer.step()


def alone() -> list[torch.Tensor]:
    """The parameters after training on the batches of all ranks at once."""
    model = make_model()
    train(model, (torch.cat([batch_of(r, step) for r in range(WORLD)], 1) for step in range(3)))
    return list(model.parameters())


def ddp(rank: int) -> list[torch.Tensor]:
    model = nn.parallel.DistributedDataParallel(make_model())
    train(model, (batch_of(rank, step) for step in range(3)))
    return list(model.parameters())


def fsdp(rank: int) -> list[torch.Tensor]:
    from torch.distributed.fsdp import fully_shard

    model = make_model()
    fully_shard(model.lstm)
    fully_shard(model)
    train(model, (batch_of(rank, step) for step in range(3)))
    return [p.full_tensor() for p in model.parameters()]


def replicated(rank: int) -> list[torch.Tensor]:
    """Weights and input are DTensors that every rank has whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor

    mesh = init_device_mesh("cpu", (WORLD,))
    model = distribute_module(make_model(), mesh)
    batches = (torch.cat([batch_of(r, step) for r in range(WORLD)], 1) for step in range(3))
    train(model, (distribute_tensor(batch, mesh, [Replicate()]) for batch in batches))
    return [p.full_tensor() for p in model.parameters()]


def process(rank: int, name: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(os.path.join(folder, "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    try:
        found = globals()[name](rank)
        torch.testing.assert_close([p.detach() for p in found], [p.detach() for p in alone()])
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", ["ddp", "fsdp", "replicated"])
def test_training_ends_where_one_process_does(extension, tmp_path, name):
    mp.spawn(process, args=(name, str(tmp_path)), nprocs=WORLD)


def in_another_process(path: str, x: torch.Tensor, model: nn.Module, queue) -> None:
    loaded = torch.load(path, weights_only=False)
    with torch.no_grad():
        model.lstm.weight_hh_l0.zero_()  # shared memory: the parent sees it
        queue.put((loaded(x).tolist(), model(x).tolist()))


def test_a_module_sent_and_shared(extension, tmp_path):
    """torch.save in one process and load in another; share_memory works both ways."""
    model, x = make_model().share_memory(), batch_of(0, 0)
    expected = model(x).detach()
    path = str(tmp_path / "model.pt")
    torch.save(model, path)
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    child = context.Process(target=in_another_process, args=(path, x, model, queue))
    child.start()
    loaded, changed = map(torch.tensor, queue.get())
    child.join()
    torch.testing.assert_close(loaded, expected)
    torch.testing.assert_close(changed, model(x).detach())
    assert (model.lstm.weight_hh_l0 == 0).all()
