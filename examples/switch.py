"""Any model: what swapping its LSTMs gains, and training it with them swapped.

    python examples/switch.py [module:function] [--picture switch.png]

`module` is a file of the folder where this is started, or any that Python finds; `function` returns
a model and a tuple of inputs. Without one, the model is the tagger below, which
knows nothing of fused_lstm: it marks the words of made-up sentences that follow "the" at any
distance up to the next comma. It is trained, swapped in the middle of its training and swapped
back, with the same optimizer all along.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from fused_lstm import profile, replace_lstm, restore_lstm

WORDS, THE, COMMA = 50, 0, 1


class Tagger(nn.Module):
    """[T, B] word numbers -> [T, B], above zero where a word is marked."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 32)
        self.lstm = nn.LSTM(32, 48, num_layers=2, bidirectional=True)
        self.head = nn.Linear(96, 1)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(words))[0]).squeeze(-1)


def make_batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Words [T, B], a tenth of them "the" and a tenth commas, and which are marked."""
    words = torch.randint(2, WORDS, (30, count), generator=generator)
    kind = torch.rand(30, count, generator=generator)
    words[kind < 0.1], words[kind > 0.9] = THE, COMMA
    marked, marks = torch.zeros(count, dtype=torch.bool), []
    for row in words:
        marked = (marked | (row == THE)) & (row != COMMA)
        marks.append(marked & (row != THE))
    return words, torch.stack(marks).float()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> list[float]:
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        words, marks = make_batch(32, generator)
        loss = nn.functional.binary_cross_entropy_with_logits(model(words), marks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    words, marks = make_batch(200, torch.Generator().manual_seed(9))
    return ((model(words) > 0) == (marks > 0)).float().mean().item()


def draw(path: Path, parts: dict[str, list[float]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2))
    first = 0
    for name, losses in parts.items():
        axes.semilogy(range(first, first + len(losses)), losses, label=name)
        first += len(losses)
    axes.set(xlabel="step", ylabel="training loss")
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?", help="module:function that returns (model, inputs)")
    parser.add_argument("--steps", type=int, default=40, help="of each of the three parts")
    parser.add_argument("--picture", type=Path, help="file for the loss")
    options = parser.parse_args()
    if options.target:
        sys.path.insert(0, os.getcwd())  # Python puts the folder of this file there instead
        module, _, function = options.target.partition(":")
        if not module or not function or ":" in function:
            parser.error(f"expected module:function, got '{options.target}'")
        profile(*getattr(importlib.import_module(module), function)(), backward=True)
        return
    torch.manual_seed(0)
    model = Tagger()
    words, _ = make_batch(32, torch.Generator().manual_seed(8))
    profile(model, (words,), backward=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    parts = {"torch.nn": train(model, optimizer, options.steps, seed=1)}
    before = model(words)
    replace_lstm(model)
    difference = (model(words) - before).abs().max().item()
    parts["fused_lstm"] = train(model, optimizer, options.steps, seed=2)
    restore_lstm(model)
    parts["torch.nn again"] = train(model, optimizer, options.steps, seed=3)
    print(f"largest difference between outputs before and after the swap: {difference:.1e}")
    print(f"held-out accuracy: {accuracy(model):.3f}")
    if options.picture:
        draw(options.picture, parts)


if __name__ == "__main__":
    main()
