"""Classify sequences of ten features: two stacked layers, the last step through a linear layer.

    python examples/classify.py [--epochs 8] [--picture classify.png]

The data are made here: each of three classes is a sum of two waves with frequencies of its own in
every feature, in random phases, under noise as strong as the waves.
"""

import argparse
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fused_lstm import LSTM

CLASSES, FEATURES, STEPS = 3, 10, 30


def make_data(count: int, seed: int) -> TensorDataset:
    """Sequences [N, STEPS, FEATURES] and their classes [N]."""
    frequencies = torch.empty(CLASSES, 2, 1, FEATURES)
    frequencies.uniform_(0.1, 1.5, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    phases = 6.28 * torch.rand(count, 2, 1, FEATURES, generator=generator)
    time = torch.arange(STEPS, dtype=torch.float32).view(1, 1, STEPS, 1)
    waves = torch.sin(frequencies[labels] * time + phases).sum(1)
    return TensorDataset(waves + torch.randn(waves.shape, generator=generator), labels)


class Classifier(nn.Module):
    """[B, T, FEATURES] -> [B, CLASSES]."""

    def __init__(self, hidden_size: int = 64, num_layers: int = 2) -> None:
        super().__init__()
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.lstm = LSTM(FEATURES, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h0 = x.new_zeros(self.num_layers, x.size(0), self.hidden_size)
        c0 = x.new_zeros(self.num_layers, x.size(0), self.hidden_size)
        out, _ = self.lstm(x, (h0, c0))
        return self.fc(out[:, -1, :])


def train(model: nn.Module, data: TensorDataset, epochs: int) -> list[float]:
    """The mean loss of each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in track(range(epochs), "training"):
        total = 0.0
        for x, labels in DataLoader(data, batch_size=64, shuffle=True):
            loss = nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        losses.append(total / len(data))
    return losses


@torch.no_grad()
def confusion(model: nn.Module, data: TensorDataset) -> Tensor:
    """How many of class i were taken for class j."""
    x, labels = data.tensors
    guesses = model.eval()(x).argmax(1)
    return torch.bincount(CLASSES * labels + guesses, minlength=CLASSES**2).view(CLASSES, CLASSES)


def draw(path: Path, losses: list[float], counts: Tensor) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    left.plot(range(1, len(losses) + 1), losses, marker="o")
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    right.imshow(counts.numpy(), cmap="Blues")
    right.set(xlabel="guessed class", ylabel="true class", title="held-out sequences")
    right.set(xticks=range(CLASSES), yticks=range(CLASSES))
    for i, j in torch.cartesian_prod(torch.arange(CLASSES), torch.arange(CLASSES)).tolist():
        right.text(j, i, counts[i, j].item(), ha="center", va="center", color="darkorange")
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--picture", type=Path, help="file for the loss and the confusion matrix")
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error(f"expected at least 1 epoch, got {options.epochs}")
    torch.manual_seed(0)
    model = Classifier()
    losses = train(model, make_data(1500, seed=1), options.epochs)
    counts = confusion(model, make_data(500, seed=2))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"held-out accuracy: {counts.trace().item() / counts.sum().item():.3f} (guessing: 0.333)")
    if options.picture:
        draw(options.picture, losses, counts)


if __name__ == "__main__":
    main()
