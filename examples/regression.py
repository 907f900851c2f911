"""From a sequence to one number: how strongly an oscillation is damped, told from noisy samples.

    python examples/regression.py [--steps 300] [--picture regression.png]

The data are made here: y(t) = exp(-d t) sin(w t + p) + noise, with random d, w and p. The model is
asked for d.
"""

import argparse
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn

from fused_lstm import LSTM

SAMPLES = 60
LEAST, MOST, NOISE = 0.0, 0.1, 0.05  # of d, and of what is added to each sample


def make_batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences [N, SAMPLES, 1] and their damping [N, 1]."""
    damping = LEAST + (MOST - LEAST) * torch.rand(count, 1, generator=generator)
    frequency = 0.3 + 0.5 * torch.rand(count, 1, generator=generator)
    phase = 6.28 * torch.rand(count, 1, generator=generator)
    time = torch.arange(SAMPLES, dtype=torch.float32)
    clean = torch.exp(-damping * time) * torch.sin(frequency * time + phase)
    noisy = clean + NOISE * torch.randn(clean.shape, generator=generator)
    return noisy.unsqueeze(-1), damping


class Regressor(nn.Module):
    """[B, T, 1] -> [B, 1], in units of the whole range of d."""

    def __init__(self, hidden_size: int = 48) -> None:
        super().__init__()
        self.lstm = LSTM(1, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, (h_n, _) = self.lstm(x)
        return self.head(h_n[-1])

    def damping(self, x: Tensor) -> Tensor:
        return LEAST + (MOST - LEAST) * self(x)


def train(model: Regressor, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in track(range(steps), "training"):
        x, damping = make_batch(64, generator)
        loss = nn.functional.mse_loss(model(x), (damping - LEAST) / (MOST - LEAST))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def explained(predicted: Tensor, true: Tensor) -> float:
    """Share of the variance that is explained, R^2: 1 is perfect, 0 is what the mean gives."""
    return 1 - ((predicted - true).square().mean() / true.var(correction=0)).item()


def draw(path: Path, predicted: Tensor, true: Tensor) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4, 4))
    axes.plot([LEAST, MOST], [LEAST, MOST], color="gray", linewidth=1)
    axes.plot(true, predicted, ".", markersize=4)
    axes.set(xlabel="true damping", ylabel="predicted", title="held-out sequences")
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--picture", type=Path, help="file for prediction against truth")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Regressor()
    train(model, options.steps)
    with torch.no_grad():
        x, true = make_batch(500, torch.Generator().manual_seed(2))
        predicted = model.eval().damping(x)
        print(f"held-out R^2: {explained(predicted, true):.3f} (the mean: 0.000)")
        x, true_one = make_batch(1, torch.Generator().manual_seed(3))
        one = model.damping(x).item()
        print(f"a new sequence: damping {one:.3f}, true {true_one.item():.3f}")
    if options.picture:
        draw(options.picture, predicted, true)


if __name__ == "__main__":
    main()
