"""Forecast tomorrow's temperature from the last thirty days, and a toy with five.

    python examples/weather.py [--epochs 30] [--picture weather.png]

The series is made here: twelve years of days, the seasons (a wave of one year and one of half a
year), a slow warming, and weather: an autoregressive process with x_t = 0.7 x_{t-1} + noise.
"""

import argparse
import copy
import math
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn

from fused_lstm import LSTM

YEAR, WINDOW = 365, 30
TRAIN, VALIDATION, DAYS = 8 * YEAR, 10 * YEAR, 12 * YEAR  # where each part of the series ends


def make_series() -> tuple[Tensor, Tensor]:
    """Degrees Celsius, [DAYS], and of each the part that nobody can know the day before."""
    generator = torch.Generator().manual_seed(0)
    day = torch.arange(DAYS, dtype=torch.float32)
    turn = 2 * math.pi * day / YEAR
    seasons = 10 - 9 * torch.cos(turn - 0.4) + 1.5 * torch.sin(2 * turn)
    weather, noise = torch.zeros(DAYS), 1.8 * torch.randn(DAYS, generator=generator)
    for t in range(1, DAYS):
        weather[t] = 0.7 * weather[t - 1] + noise[t]
    return seasons + weather + 0.5 * day / DAYS, noise


def windows(series: Tensor, first: int, last: int, width: int) -> tuple[Tensor, Tensor]:
    """Days before each day of [first, last), [N, width, 1], and that day, [N, 1]."""
    x = torch.stack([series[t - width : t] for t in range(max(first, width), last)])
    return x.unsqueeze(-1), series[max(first, width) : last].unsqueeze(-1)


class Forecaster(nn.Module):
    """[B, T, 1] -> [B, 1]: how much the next day differs from the last one."""

    def __init__(self, hidden_size: int = 32) -> None:
        super().__init__()
        self.lstm = LSTM(1, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return x[:, -1] + self.head(out[:, -1])


def train(
    model: nn.Module, data: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], epochs: int
) -> int:
    """Ends early where the validation loss has not fallen for five epochs; keeps the best model."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    best, best_epoch, kept = math.inf, 0, copy.deepcopy(model.state_dict())
    for epoch in track(range(epochs), "training"):
        for rows in torch.randperm(len(data[0])).split(128):
            loss = nn.functional.mse_loss(model(data[0][rows]), data[1][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            validation = nn.functional.mse_loss(model(held[0]), held[1]).item()
        if validation < best:
            best, best_epoch, kept = validation, epoch, copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= 5:
            break
    model.load_state_dict(kept)
    return best_epoch + 1


def toy() -> tuple[float, float]:
    """The tutorials' one: five days in, the sixth out. Learned from 20 days, asked for the 21st."""
    days = [12.0, 14, 15, 17, 20, 22, 21, 19, 18, 16, 15, 13, 12, 14, 15, 17, 19, 22, 21, 20, 18]
    scaled = (torch.tensor(days) - 16) / 4
    x, y = windows(scaled, 0, len(days) - 1, width=5)
    model = Forecaster(16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    new, _ = windows(scaled, len(days) - 1, len(days), width=5)
    return 4 * model(new).item() + 16, days[-1]


def draw(path: Path, true: Tensor, predicted: Tensor) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.2))
    axes.plot(true[-120:], label="truth", color="gray")
    axes.plot(predicted[-120:], "--", label="forecast of the day before")
    axes.set(xlabel="the last 120 days of the test", ylabel="degrees Celsius")
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--picture", type=Path, help="file for the forecast beside the truth")
    options = parser.parse_args()
    torch.manual_seed(0)
    series, noise = make_series()
    mean, spread = series[:TRAIN].mean(), series[:TRAIN].std()  # of what may be known
    normal = (series - mean) / spread
    parts = [(0, TRAIN), (TRAIN, VALIDATION), (VALIDATION, DAYS)]
    data, held, test = (windows(normal, first, last, WINDOW) for first, last in parts)
    model = Forecaster()
    epoch = train(model, data, held, options.epochs)
    with torch.no_grad():
        predicted, true, before = (spread * t + mean for t in (model(test[0]), test[1], test[0]))
    error = (predicted - true).abs().mean().item()
    naive = (before[:, -1] - true).abs().mean().item()
    print(f"best epoch: {epoch}")
    least = noise[VALIDATION:].abs().mean().item()
    print(f"held-out mean error: {error:.3f} degrees (tomorrow as today: {naive:.3f})")
    print(f"of it, what nobody can know: {least:.3f}")
    guess, truth = toy()
    print(f"toy: the day after {guess:.1f}, true {truth:.1f}")
    if options.picture:
        draw(options.picture, true, predicted)


if __name__ == "__main__":
    main()
