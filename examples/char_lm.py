"""A model of characters, over this project's own documentation, that then writes some.

    python examples/char_lm.py [--epochs 12] [--picture char_lm.png]

The text is cut into rows that are read side by side, 50 characters at a time. The state at the end
of one piece starts the next, without its gradient: truncated backpropagation through time. Text is
written one character a call, the state carried along.
"""

import argparse
import math
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn

from fused_lstm import LSTM

ROOT = Path(__file__).resolve().parent.parent
ROWS, PIECE = 16, 50
State = tuple[Tensor, Tensor]


def read_text() -> str:
    """What the README and the pages say, without the lines of their drawings."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    return "".join(c for c in text if c.isascii())


class CharacterModel(nn.Module):
    """[T, B] character numbers and a state -> logits [T, B, characters] and the next state."""

    def __init__(self, characters: int, features: int = 32, hidden_size: int = 160) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, features)
        self.lstm = LSTM(features, hidden_size, num_layers=2, dropout=0.1)
        self.head = nn.Linear(hidden_size, characters)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        y, state = self.lstm(self.embedding(x), state)
        return self.head(y), state


def in_rows(numbers: Tensor) -> Tensor:
    """[N] -> [N / ROWS, ROWS]: each row is a stretch of the text."""
    steps = len(numbers) // ROWS
    return numbers[: steps * ROWS].view(ROWS, steps).t().contiguous()


def losses(model: nn.Module, text: Tensor):
    """The loss of each piece of `text [T, ROWS]`, the state of one starting the next."""
    state = None
    for k in range(0, len(text) - 1, PIECE):
        piece = text[k : k + PIECE + 1]
        logits, state = model(piece[:-1], state)
        state = tuple(s.detach() for s in state)
        yield nn.functional.cross_entropy(logits.flatten(0, 1), piece[1:].flatten())


@torch.no_grad()
def bits(model: nn.Module, text: Tensor) -> float:
    """Mean bits for each character, which is what an ideal compressor would need."""
    model.eval()
    found = torch.stack(list(losses(model, text))).mean().item() / math.log(2)
    model.train()
    return found


def bits_by_frequency(text: Tensor, held: Tensor) -> float:
    """What it takes to know only how often each character comes in `text`."""
    counts = torch.bincount(text.flatten(), minlength=int(max(text.max(), held.max())) + 1) + 1
    return -(counts / counts.sum()).log2()[held.flatten()].mean().item()


def train(model: nn.Module, text: Tensor, held: Tensor, epochs: int) -> list[float]:
    """Bits on the held-out text after each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    found = []
    for _ in track(range(epochs), "training"):
        for loss in losses(model, text):
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        found.append(bits(model, held))
    return found


@torch.no_grad()
def write(model: nn.Module, characters: list[str], start: str, length: int) -> str:
    """Text that goes on from `start`, one character a call."""
    model.eval()
    generator = torch.Generator().manual_seed(5)
    logits, state = model(torch.tensor([[characters.index(c)] for c in start]))
    written = start
    for _ in range(length):
        chances = (logits[-1, 0] / 0.6).softmax(0)
        k = torch.multinomial(chances, 1, generator=generator)
        written += characters[k]
        logits, state = model(k.view(1, 1), state)
    return written


def draw(path: Path, found: list[float], base: float) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2))
    axes.plot(range(1, len(found) + 1), found, marker="o", label="model")
    axes.axhline(base, color="gray", linestyle="--", label="frequencies alone")
    axes.set(xlabel="epoch", ylabel="bits a character, held-out text", ylim=(0, None))
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--picture", type=Path, help="file for the bits after each epoch")
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error(f"expected at least 1 epoch, got {options.epochs}")
    torch.manual_seed(0)
    text = read_text()
    characters = sorted(set(text))
    numbers = torch.tensor([characters.index(c) for c in text])
    border = int(0.9 * len(numbers))
    known, held = in_rows(numbers[:border]), in_rows(numbers[border:])
    model = CharacterModel(len(characters))
    found = train(model, known, held, options.epochs)
    base = bits_by_frequency(known, held)
    print(f"held-out bits a character: {found[-1]:.2f} (by frequencies alone: {base:.2f})")
    print(write(model, characters, "The ", 200))
    if options.picture:
        draw(options.picture, found, base)


if __name__ == "__main__":
    main()
