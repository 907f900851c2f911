"""Train an LSTM to continue a noisy wave; the only line that differs from torch.nn is the import.

python examples/predict_wave.py [--steps 150]
"""

import argparse
import math

import torch
from torch import Tensor, nn

from fused_lstm import LSTM


class WavePredictor(nn.Module):
    """Predicts each next value of a sequence from the values so far."""

    def __init__(self, hidden_size: int = 64) -> None:
        super().__init__()
        self.lstm = LSTM(1, hidden_size, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, 1] -> [B, T, 1]
        y, _ = self.lstm(x)
        return self.head(y)


def noisy_waves(batch: int, steps: int) -> Tensor:
    """Sine waves of random frequency and phase, [B, T, 1]."""
    time = torch.arange(steps, dtype=torch.float32)
    frequency = torch.empty(batch, 1).uniform_(0.1, 0.4)
    phase = torch.empty(batch, 1).uniform_(0, 2 * math.pi)
    waves = torch.sin(frequency * time + phase) + 0.05 * torch.randn(batch, steps)
    return waves.unsqueeze(-1)


def train(steps: int) -> tuple[float, float]:
    """Mean squared error at the start and at the end."""
    torch.manual_seed(0)
    model = WavePredictor()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    first = last = 0.0
    for step in range(steps):
        waves = noisy_waves(batch=32, steps=60)
        loss = nn.functional.mse_loss(model(waves[:, :-1]), waves[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        first, last = (loss.item() if step == 0 else first), loss.item()
        if step % 25 == 0:
            print(f"step {step:4}: loss {loss.item():.4f}")
    return first, last


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    before, after = train(parser.parse_args().steps)
    print(f"loss {before:.4f} -> {after:.4f} (the noise alone: {0.05**2:.4f})")
