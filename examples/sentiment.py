"""Tell whether a review praises or complains, also where a clause says the opposite.

    python examples/sentiment.py [--epochs 4] [--picture sentiment.png]

The reviews are made here, by a grammar:

    review   = plain | plain "." plain | although | but
    plain    = "the" THING VERB ADVERB? JUDGEMENT          the plot was really dull
    although = "although" plain "," plain                  the second clause decides
    but      = plain "," "but" plain                       so it does here

Both clauses of a contrast hold words of either kind, so that counting words is no use there: their
order decides. Lengths differ, and the layer is told them: no step is spent on padding. No review is
in both the training and the held-out part.
"""

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fused_lstm import LSTM

THINGS = ["plot", "cast", "music", "camera", "dialogue", "ending", "script", "director", "story"]
VERBS = ["was", "seemed", "felt", "looked", "stayed"]
ADVERBS = ["really", "rather", "quite", "truly", "somewhat", "utterly"]
WORDS = (  # of class 0, a complaint, and of class 1, praise
    ["dull", "weak", "awful", "clumsy", "boring", "shallow", "tedious", "bad", "flat", "lifeless"],
    [
        "brilliant",
        "charming",
        "superb",
        "fresh",
        "moving",
        "witty",
        "gripping",
        "good",
        "warm",
        "clever",
    ],
)
CLASSES = ("complaint", "praise")
Review = tuple[str, int]


def plain(rng: random.Random, label: int) -> str:
    adverb = [rng.choice(ADVERBS)] if rng.random() < 0.5 else []
    words = [rng.choice(THINGS), rng.choice(VERBS), *adverb, rng.choice(WORDS[label])]
    return " ".join(["the", *words])


def make_reviews(count: int, seed: int) -> list[Review]:
    """As many different ones."""
    rng = random.Random(seed)
    found: dict[str, int] = {}
    while len(found) < count:
        label = rng.randrange(2)
        last, other = plain(rng, label), plain(rng, 1 - label)
        forms = (last, f"{plain(rng, label)}. {last}", f"although {other}, {last}")
        found[rng.choice((*forms, f"{other}, but {last}"))] = label
    return list(found.items())


class Tokenizer:
    """Numbers for words, in the order in which they come first; 0 for one that is new."""

    def __init__(self, texts: list[str]) -> None:
        words = dict.fromkeys(word for text in texts for word in self.split(text))
        self.numbers = {word: k for k, word in enumerate(words, start=1)}

    @staticmethod
    def split(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text.lower())

    def __call__(self, text: str) -> Tensor:
        return torch.tensor([self.numbers.get(word, 0) for word in self.split(text)])


class Sentiment(nn.Module):
    """Word numbers [T, B] and lengths [B] -> [B, 2]: what each direction knows at its end."""

    def __init__(self, words: int, features: int = 24, hidden_size: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, features)
        self.lstm = LSTM(features, hidden_size, bidirectional=True)
        self.head = nn.Linear(2 * hidden_size, len(CLASSES))

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        _, (h_n, _) = self.lstm(self.embedding(words), lengths=lengths)
        return self.head(torch.cat([h_n[0], h_n[1]], dim=1))


def batch_of(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Word numbers [T, B], padded to the longest, and lengths [B]."""
    rows = [tokenizer(text) for text in texts]
    return pad_sequence(rows), torch.tensor([len(row) for row in rows])


def batches(
    data: list[Review], size: int, tokenizer: Tokenizer
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Words, lengths, labels."""
    for k in range(0, len(data), size):
        texts, labels = zip(*data[k : k + size], strict=True)
        yield *batch_of(texts, tokenizer), torch.tensor(labels)


def train(model: nn.Module, data: list[Review], tokenizer: Tokenizer, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(epochs):
        random.Random(epoch).shuffle(data)
        rounds = list(batches(data, 50, tokenizer))
        for words, lengths, labels in track(rounds, f"epoch {epoch + 1}"):
            loss = nn.functional.cross_entropy(model(words, lengths), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


@torch.no_grad()
def scores(model: nn.Module, data: list[Review], tokenizer: Tokenizer) -> dict[str, dict]:
    """Precision and recall of each class."""
    ((words, lengths, labels),) = batches(data, len(data), tokenizer)
    guesses = model.eval()(words, lengths).argmax(1)
    found = {}
    for k, name in enumerate(CLASSES):
        right = ((guesses == k) & (labels == k)).sum().item()
        guessed, there = (guesses == k).sum().item(), (labels == k).sum().item()
        found[name] = {"precision": right / max(1, guessed), "recall": right / max(1, there)}
    return found


def draw(path: Path, found: dict[str, dict]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4, 3))
    for k, measure in enumerate(("precision", "recall")):
        values = [found[name][measure] for name in CLASSES]
        axes.bar([i + 0.35 * k for i in range(2)], values, 0.3, label=measure)
    axes.set_xticks([0.17, 1.17], CLASSES)
    axes.set(ylim=(0, 1.05), title="held-out reviews")
    axes.legend(loc="lower center")
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--picture", type=Path, help="file for precision and recall")
    options = parser.parse_args()
    torch.manual_seed(0)
    reviews = make_reviews(2500, seed=1)
    data, held = reviews[:2000], reviews[2000:]
    tokenizer = Tokenizer([text for text, _ in data])
    model = Sentiment(len(tokenizer.numbers) + 1)
    train(model, data, tokenizer, options.epochs)
    found = scores(model, held, tokenizer)
    for name, each in found.items():
        print(f"{name}: precision {each['precision']:.3f}, recall {each['recall']:.3f}")
    for text in ("although the cast was brilliant, the story felt dull", held[0][0]):
        with torch.no_grad():
            guess = model(*batch_of([text], tokenizer)).argmax().item()
        print(f'"{text}": {CLASSES[guess]}')
    if options.picture:
        draw(options.picture, found)


if __name__ == "__main__":
    main()
