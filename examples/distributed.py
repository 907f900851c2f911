"""The same training on several processes or machines, with DistributedDataParallel.

    torchrun --nproc-per-node 2 examples/distributed.py [--steps 200] [--picture distributed.png]

Each process draws batches of its own, gradients are averaged (gloo on CPUs, NCCL on GPUs), and all
end with the same parameters. The task, made here: the largest of twelve normal numbers. Started
without torchrun it is one process.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fused_lstm import LSTM

LENGTH = 12


def make_batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers [T, B, 1] and the largest of each column [B, 1]."""
    x = torch.randn(LENGTH, count, 1, generator=generator)
    return x, x.amax(0)


class Largest(nn.Module):
    """[T, B, 1] -> [B, 1]."""

    def __init__(self, hidden_size: int = 32) -> None:
        super().__init__()
        self.lstm = LSTM(1, hidden_size)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][-1])


def train(model: nn.Module, steps: int, device: torch.device) -> list[float]:
    """Losses of this process's batches."""
    generator = torch.Generator().manual_seed(100 + dist.get_rank())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        x, largest = (t.to(device) for t in make_batch(64, generator))
        loss = nn.functional.mse_loss(model(x), largest)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def largest_difference(model: nn.Module) -> float:
    """Between the first process's parameters and any other's; the first process learns of it.

    Sent and received, as gloo's threads may hold the tensors of an all_reduce for a moment after it
    has returned, and a process that ends in this moment is aborted.
    """
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    if dist.get_rank() > 0:
        dist.send(flat, 0)
        return 0.0
    differences = [0.0]
    for rank in range(1, dist.get_world_size()):
        other = torch.empty_like(flat)
        dist.recv(other, rank)
        differences.append((flat - other).abs().max().item())
    return max(differences)


def draw(path: Path, losses: list[float]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2))
    axes.semilogy(losses)
    axes.set(xlabel="step", ylabel="training loss of the first process")
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--picture", type=Path, help="file for the loss")
    options = parser.parse_args()
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29511")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else "cpu"
    dist.init_process_group("nccl" if cuda else "gloo")
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(Largest().to(device))
    losses = train(model, options.steps, device)
    difference = largest_difference(model)
    if dist.get_rank() == 0:
        with torch.no_grad():
            x, largest = (t.to(device) for t in make_batch(1000, torch.Generator().manual_seed(1)))
            error = nn.functional.mse_loss(model.module(x), largest).item()
            mean = largest.var().item()
        print(f"{dist.get_world_size()} processes, parameters differ by {difference:.1e}")
        print(f"held-out squared error: {error:.4f} (always the mean: {mean:.4f})")
        if options.picture:
            draw(options.picture, losses)
    dist.barrier()  # or one that ends before the others may be aborted by gloo's threads
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
