"""Programs as tutorials show them print the same numbers with nothing changed but the import."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
import torch

CLASSIFIER = """
import torch
import torch.nn as nn
from torch.nn import LSTM


class Classifier(nn.Module):
    def __init__(self, input_size, hidden_size, num_layers, num_classes):
        super().__init__()
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.lstm = LSTM(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, num_classes)

    def forward(self, x):
        h0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size)
        c0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size)
        out, _ = self.lstm(x, (h0, c0))
        return self.fc(out[:, -1, :])


torch.manual_seed(42)
model = Classifier(10, 20, 2, 5)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
inputs = torch.randn(64, 7, 10)
labels = torch.randint(0, 5, (64,))
for epoch in range(5):
    loss = criterion(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"epoch {epoch + 1}, loss: {loss.item():.4f}")
model.eval()
with torch.no_grad():
    print("classes:", model(inputs).argmax(1)[:10].tolist())
"""

REGRESSION = """
import torch
import torch.nn as nn
from torch.nn import LSTM


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = LSTM(input_size=1, hidden_size=50, num_layers=1)
        self.linear = nn.Linear(50, 1)
        self.state = (torch.zeros(1, 1, 50), torch.zeros(1, 1, 50))

    def forward(self, sequence):
        out, self.state = self.lstm(sequence.view(len(sequence), 1, -1), self.state)
        return self.linear(out.view(len(sequence), -1))[-1]


torch.manual_seed(0)
series = torch.sin(0.3 * torch.arange(40.0))
pairs = [(series[k : k + 12], series[k + 12 : k + 13]) for k in range(20)]
model = Regressor()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(3):
    total = 0.0
    for sequence, target in pairs:
        optimizer.zero_grad()
        model.state = (torch.zeros(1, 1, 50), torch.zeros(1, 1, 50))
        loss = nn.functional.mse_loss(model(sequence), target)
        loss.backward()
        optimizer.step()
        total += loss.item()
    print(f"epoch {epoch} loss {total / len(pairs):.4f}")
known = series[:12].tolist()
with torch.no_grad():
    for _ in range(4):
        model.state = (torch.zeros(1, 1, 50), torch.zeros(1, 1, 50))
        known.append(model(torch.tensor(known[-12:])).item())
print("next:", " ".join(f"{value:.4f}" for value in known[12:]))
"""

WEATHER = """
import torch
from torch import nn
from torch.nn import LSTM

torch.manual_seed(7)
temperatures = [14.0, 15.5, 17.0, 16.0, 15.0, 13.5, 12.0, 12.5, 14.0, 16.5, 18.0, 17.5]
low, high = min(temperatures), max(temperatures)
scaled = [(value - low) / (high - low) for value in temperatures]
x = torch.tensor([scaled[k : k + 5] for k in range(7)]).unsqueeze(2)
y = torch.tensor([scaled[k + 5] for k in range(7)]).unsqueeze(1)


class Weather(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = LSTM(1, 16, batch_first=True, bidirectional=True)
        self.out = nn.Linear(32, 1)

    def forward(self, x):
        _, (h_n, _) = self.rnn(x)
        return self.out(torch.cat((h_n[-2], h_n[-1]), dim=1))


model = Weather()
optimizer = torch.optim.RMSprop(model.parameters(), lr=0.005)
for step in range(30):
    error = ((model(x) - y) ** 2).mean()
    optimizer.zero_grad()
    error.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step} error {error.item():.4f}")
print("tomorrow:", round((model(x[-1:]) * (high - low) + low).item(), 2))
"""

FROM_SCRATCH = """
import torch
from torch.nn import LSTM, LSTMCell

torch.manual_seed(3)
layer, cell = LSTM(4, 6), LSTMCell(4, 6)
x = torch.randn(5, 2, 4)
state = dict(layer.named_parameters())


def by_hand(x):
    h = c = torch.zeros(2, 6)
    for x_t in x:
        gates = x_t @ state["weight_ih_l0"].T + state["bias_ih_l0"]
        gates = gates + h @ state["weight_hh_l0"].T + state["bias_hh_l0"]
        i, f, g, o = gates.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return h


out, (h_n, c_n) = layer(x)
print("by hand:", torch.allclose(by_hand(x), h_n[0], atol=1e-6))
print("sums:", f"{out.sum().item():.4f} {c_n.sum().item():.4f}")
(out**2).sum().backward()
print("gradients:", " ".join(f"{p.grad.norm().item():.4f}" for p in layer.parameters()))
h = c = torch.zeros(2, 6)
for x_t in x:
    h, c = cell(x_t, (h, c))
print("cell:", f"{h.sum().item():.4f} {c.sum().item():.4f}")
print(layer, cell)
"""

PROGRAMS = {
    "classifier": CLASSIFIER,
    "regression": REGRESSION,
    "weather": WEATHER,
    "from scratch": FROM_SCRATCH,
}
NUMBER = re.compile(r"-?\d+\.\d+")


def printed(program: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(program, "<tutorial>", "exec"), {"__name__": "__main__"})
    return output.getvalue()


@pytest.mark.parametrize("name", PROGRAMS)
def test_only_the_import_changes(extension, name):
    torch.set_num_threads(1)
    program = PROGRAMS[name]
    changed = program.replace("from torch.nn import LSTM", "from fused_lstm import LSTM")
    assert changed.count("fused_lstm") == 1
    theirs, ours = printed(program), printed(changed)
    assert NUMBER.sub("#", ours) == NUMBER.sub("#", theirs)
    # Four decimals: a value on the border between two may be rounded to either.
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (ours, theirs)]
    assert len(numbers[1]) >= 4
    assert numbers[0] == pytest.approx(numbers[1], abs=1.01e-4, rel=0)
