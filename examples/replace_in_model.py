"""Make a model that exists already faster: swap its LSTMs, parameters and all, and back again.

python examples/replace_in_model.py
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from fused_lstm import replace_lstm, restore_lstm


class Tagger(nn.Module):
    """A model that knows nothing of fused_lstm: one label for each word of each sentence."""

    def __init__(self, words: int = 1000, labels: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 64)
        self.lstm = nn.LSTM(64, 96, num_layers=2, bidirectional=True)
        self.head = nn.Linear(2 * 96, labels)

    def forward(self, sentences: PackedSequence) -> Tensor:  # -> [longest, B, labels]
        embedded = sentences._replace(data=self.embedding(sentences.data))
        padded, _ = pad_packed_sequence(self.lstm(embedded)[0])
        return self.head(padded)


def main() -> float:
    """The largest difference between the model's outputs before and after the swap."""
    torch.manual_seed(0)
    model = Tagger().eval()
    lengths = (23, 17, 17, 4)
    sentences = pack_sequence([torch.randint(1000, (length,)) for length in lengths])
    with torch.no_grad():
        expected = model(sentences)
        replace_lstm(model)  # says what it swapped
        actual = model(sentences)
    print(model.lstm)
    difference = (actual - expected).abs().max().item()
    print(f"largest difference between the outputs: {difference:.1e}")

    restore_lstm(model)
    print(model.lstm)
    return difference


if __name__ == "__main__":
    main()
