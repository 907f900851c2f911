"""The LSTM as textbooks write it, beside fused_lstm.LSTM with the same weights.

    python examples/from_scratch.py [--steps 150] [--picture from_scratch.png]

With [h, x] for the last state and the input side by side, and * for element by element:

    f = sigmoid(W_f [h, x] + b_f)       what of the memory is kept
    i = sigmoid(W_i [h, x] + b_i)       what of the candidate is taken
    C~ = tanh(W_C [h, x] + b_C)         the candidate
    o = sigmoid(W_o [h, x] + b_o)       what of the memory is shown
    C = f * C + i * C~
    h = o * tanh(C)

Hochreiter and Schmidhuber 1997; the forget gate is of Gers, Schmidhuber and Cummins 2000. Weights
start as Glorot and Bengio 2010 say, the first state is learned, and rows of a batch end when their
sequence does. Trained to say which of the first ten letters came at the marked place.
"""

import argparse
import timeit
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fused_lstm import LSTM

LETTERS = 10
GATES = ("f", "i", "C", "o")


class Cell(nn.Module):
    """One step: x [B, I], h and C [B, H] -> h and C."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        for letter in GATES:
            gate = nn.Linear(hidden_size + input_size, hidden_size)
            nn.init.xavier_uniform_(gate.weight)
            nn.init.zeros_(gate.bias)
            setattr(self, f"W_{letter}", gate)
        nn.init.ones_(self.W_f.bias)  # at first, remember

    def forward(self, x: Tensor, h: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        hx = torch.cat([h, x], dim=1)
        f, i, o = (torch.sigmoid(gate(hx)) for gate in (self.W_f, self.W_i, self.W_o))
        C = f * C + i * torch.tanh(self.W_C(hx))
        return o * torch.tanh(C), C

    def in_pytorchs_layout(self, gradients: bool = False) -> list[Tensor]:
        """w_ih, w_hh and b_ih of an LSTM that computes the same, or their gradients."""
        found = {}
        for letter in GATES:
            gate = getattr(self, f"W_{letter}")
            found[f"W_{letter}"], found[f"b_{letter}"] = gate.weight, gate.bias
        if gradients:
            found = {name: parameter.grad for name, parameter in found.items()}
        return LSTM.from_concatenated(**found).all_weights[0][:3]


class TextbookLSTM(nn.Module):
    """Several layers in both directions over x [T, B, I] with lengths [B] -> [T, B, 2H]."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        sizes = [input_size] + [2 * hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList(Cell(size, hidden_size) for size in sizes for _ in range(2))
        self.h0 = nn.Parameter(torch.zeros(2 * num_layers, 1, hidden_size))
        self.C0 = nn.Parameter(torch.zeros(2 * num_layers, 1, hidden_size))

    def walk(self, k: int, x: Tensor, lengths: Tensor) -> Tensor:
        """Direction k % 2 of layer k // 2. Past its length a row keeps its state and shows 0."""
        steps = range(len(x)) if k % 2 == 0 else range(len(x) - 1, -1, -1)
        h, C = (s[k].expand(x.shape[1], -1) for s in (self.h0, self.C0))
        outputs: list[Tensor] = [h] * len(x)
        for t in steps:
            live = (t < lengths).unsqueeze(1)
            new_h, new_C = self.cells[k](x[t], h, C)
            h, C = torch.where(live, new_h, h), torch.where(live, new_C, C)
            outputs[t] = torch.where(live, h, 0.0)
        return torch.stack(outputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        for k in range(0, len(self.cells), 2):
            x = torch.cat([self.walk(k, x, lengths), self.walk(k + 1, x, lengths)], dim=2)
        return x

    def gradients(self) -> list[Tensor]:
        """Of the first state and of the weights, in the layout of `FusedLSTM`."""
        weights = [g for cell in self.cells for g in cell.in_pytorchs_layout(gradients=True)]
        return [self.h0.grad, self.C0.grad, *weights]


class FusedLSTM(nn.Module):
    """The same with fused_lstm.LSTM on packed input; `load` takes a textbook's weights."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = LSTM(input_size, hidden_size, num_layers, bidirectional=True)
        self.h0 = nn.Parameter(torch.zeros(2 * num_layers, 1, hidden_size))
        self.C0 = nn.Parameter(torch.zeros(2 * num_layers, 1, hidden_size))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        state = tuple(s.expand(-1, x.shape[1], -1).contiguous() for s in (self.h0, self.C0))
        return pad_packed_sequence(self.lstm(packed, state)[0], total_length=len(x))[0]

    @torch.no_grad()
    def load(self, book: TextbookLSTM) -> None:
        self.h0.copy_(book.h0)
        self.C0.copy_(book.C0)
        for cell, weights in zip(book.cells, self.lstm.all_weights, strict=True):
            for own, given in zip(weights[:3], cell.in_pytorchs_layout(), strict=True):
                own.copy_(given)
            weights[3].zero_()  # b_hh: the textbook has one bias

    def gradients(self) -> list[Tensor]:
        weights = [w.grad for group in self.lstm.all_weights for w in group[:3]]
        return [self.h0.grad, self.C0.grad, *weights]


def make_batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, B, LETTERS + 1] of random letters, one of them marked; lengths, and marked letters."""
    lengths = torch.randint(5, 21, (count,), generator=generator)
    letters = torch.randint(LETTERS, (20, count), generator=generator)
    place = (torch.rand(count, generator=generator) * lengths).long()
    x = torch.zeros(20, count, LETTERS + 1)
    x[..., :LETTERS] = nn.functional.one_hot(letters, LETTERS)
    x[place, torch.arange(count), LETTERS] = 1.0
    return x, lengths, letters[place, torch.arange(count)]


class Reader(nn.Module):
    """Says the marked letter, from the first step's and the last step's output."""

    def __init__(self, lstm: nn.Module, features: int) -> None:
        super().__init__()
        self.lstm, self.head = lstm, nn.Linear(features, LETTERS)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = self.lstm(x, lengths)
        return self.head(y[0] + y[lengths - 1, torch.arange(x.shape[1])])


def train(model: Reader, steps: int) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in track(range(steps), "training"):
        x, lengths, letters = make_batch(64, generator)
        loss = nn.functional.cross_entropy(model(x, lengths), letters)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def largest_difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def compare(book: TextbookLSTM, fused: FusedLSTM) -> tuple[float, float]:
    """Largest difference of the outputs, and of the gradients of input, first state and weights.

    Each relative to the largest element.
    """
    x, lengths, _ = make_batch(16, torch.Generator().manual_seed(3))
    outputs, gradients = [], []
    for model in (book, fused):
        given = x.clone().requires_grad_()
        outputs.append(model(given, lengths))
        outputs[-1].square().sum().backward()
        gradients.append([given.grad, *model.gradients()])
    return (
        largest_difference(*outputs),
        max(largest_difference(a, b) for a, b in zip(*gradients, strict=True)),
    )


def seconds(model: nn.Module) -> float:
    """The faster of five training passes."""
    x, lengths, _ = make_batch(64, torch.Generator().manual_seed(4))

    def once() -> None:
        model(x, lengths).sum().backward()

    return min(timeit.repeat(once, number=1, repeat=5))


def draw(path: Path, losses: list[float], times: list[float]) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    left.plot(losses)
    left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    right.bar(["textbook", "fused_lstm"], [1e3 * time for time in times])
    right.set(ylabel="ms for a training pass")
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--picture", type=Path, help="file for the loss and the times")
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = (LETTERS + 1, 24, 2)
    book, fused = TextbookLSTM(*sizes), FusedLSTM(*sizes)
    fused.load(book)
    outputs, gradients = compare(book, fused)
    print(f"largest difference of outputs and gradients: {max(outputs, gradients):.1e}")
    slow, fast = seconds(book), seconds(fused)
    print(f"a training pass: {1e3 * slow:.1f} ms -> {1e3 * fast:.1f} ms")
    model = Reader(fused, 48)
    losses = train(model, options.steps)
    with torch.no_grad():
        x, lengths, letters = make_batch(500, torch.Generator().manual_seed(2))
        right = (model(x, lengths).argmax(1) == letters).float().mean().item()
    print(f"held-out accuracy: {right:.3f} (guessing: {1 / LETTERS:.3f})")
    if options.picture:
        draw(options.picture, losses, [slow, fast])


if __name__ == "__main__":
    main()
