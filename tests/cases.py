"""Layers, inputs and the comparison that most tests are made of."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fused_lstm

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DTYPE_IDS = ["fp32", "fp64", "bf16", "fp16"]


def lines_said(stderr: str) -> list[str]:
    """What a program printed, but for what some releases of torch add where there is a CUDA toolkit
    and no GPU.
    """
    return [line for line in stderr.splitlines() if "No CUDA runtime is found" not in line]


@dataclass(frozen=True)
class Case:
    """One layer and one input."""

    T: int = 5
    B: int = 3
    I: int = 4  # noqa: E741
    H: int = 6
    P: int = 0
    layers: int = 1
    bias: bool = True
    batch_first: bool = False
    bidirectional: bool = False
    hx: bool = True
    kind: str = "dense"  # or "packed" or "unbatched"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    dropout: float = 0.0
    scale: float = 1.0  # of the input

    def with_(self, **changes: Any) -> Case:
        return replace(self, **changes)

    @property
    def batch(self) -> int:
        return 1 if self.kind == "unbatched" else self.B

    def modules(self) -> tuple[nn.LSTM, fused_lstm.LSTM]:
        """PyTorch's layer and ours, with equal parameters."""
        arguments = dict(
            num_layers=self.layers,
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            proj_size=self.P,
            dropout=self.dropout,
            device=self.device,
            dtype=self.dtype,
        )
        theirs = nn.LSTM(self.I, self.H, **arguments)
        ours = fused_lstm.LSTM(self.I, self.H, **arguments)
        ours.load_state_dict(theirs.state_dict())
        return theirs, ours

    def sequences(self) -> list[Tensor]:
        """One ``[T_b, I]`` per batch entry; lengths differ and are unsorted where packed."""
        lengths = [self.T] * self.batch
        if self.kind == "packed":
            lengths = [1 + (3 * b + 1) % self.T for b in range(self.B)]
        options = dict(device=self.device, dtype=self.dtype)
        return [self.scale * torch.randn(n, self.I, **options) for n in lengths]

    def state(self) -> tuple[Tensor, Tensor]:
        """``h0 [L*D, B, P]`` and ``c0 [L*D, B, H]``: random, or zeros where the case has no hx."""
        make = torch.randn if self.hx else torch.zeros
        count = self.layers * (2 if self.bidirectional else 1)
        options = dict(device=self.device, dtype=self.dtype)
        return (
            make(count, self.batch, self.P or self.H, **options),
            make(count, self.batch, self.H, **options),
        )

    def pack(self, sequences: list[Tensor]) -> Tensor | PackedSequence:
        """The input of the layer."""
        if self.kind == "packed":
            return pack_sequence(sequences, enforce_sorted=False)
        if self.kind == "unbatched":
            return sequences[0]
        return torch.stack(sequences, 0 if self.batch_first else 1)


def run(module: nn.Module, case: Case, sequences: list[Tensor], hx: tuple[Tensor, Tensor]):
    """Outputs as the oracle gives them: one ``[T_b, D*P]`` per sequence, then h_n and c_n."""
    given = hx if case.hx else None
    if given is not None and case.kind == "unbatched":
        given = (hx[0].squeeze(1), hx[1].squeeze(1))
    y, (h_n, c_n) = module(case.pack(sequences), given)
    if case.kind == "packed":
        padded, lengths = nn.utils.rnn.pad_packed_sequence(y)
        ys = [padded[:n, b] for b, n in enumerate(lengths.tolist())]
    elif case.kind == "unbatched":
        ys, h_n, c_n = [y], h_n.unsqueeze(1), c_n.unsqueeze(1)
    else:
        ys = list(y.unbind(0 if case.batch_first else 1))
    return ys, h_n, c_n


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def gradients(outputs, inputs: list[Tensor], seed: int = 7) -> list[Tensor]:
    """Gradients of a fixed random combination of all outputs."""
    generator = torch.Generator().manual_seed(seed)
    ys, h_n, c_n = outputs
    loss = 0
    for t in (*ys, h_n, c_n):
        weight = torch.randn(t.shape, generator=generator, dtype=torch.float64)
        loss = loss + (t.double() * weight.to(t.device)).sum()
    return list(torch.autograd.grad(loss, inputs))


def check(case: Case, backward: bool = True) -> None:
    """Values and gradients against the float64 oracle, no worse than ``nn.LSTM``'s.

    The oracle starts from the same rounded inputs and weights. Small cases are repeated: the
    largest error among a handful of elements is a matter of luck.
    """
    found: dict[str, list[list[Tensor]]] = {}
    for _ in range(max(1, min(4, 80 // (case.batch * (case.P or case.H))))):
        for name, three in results(case, backward):
            found.setdefault(name, []).append([t.detach().flatten() for t in three])
    for name, repeats in found.items():
        ours, theirs, exact = (torch.cat(parts) for parts in zip(*repeats, strict=True))
        oracle.assert_as_accurate(ours, theirs, exact, name)


def column(case: Case, backward: bool, outputs, xs, h0, c0, weights) -> list[Tensor]:
    """Outputs and gradients, in the order in which they are compared."""
    ys, h_n, c_n = outputs
    found = [torch.cat(list(ys)), h_n, c_n]
    if backward:
        states = [h0, c0] if case.hx else []
        found += gradients(outputs, [*xs, *states, *weights])
    return found


# Of the last cases: a case is computed in many ways, each of which has the same right result. The
# state of the random numbers stands for what was drawn.
_exact: OrderedDict[tuple[Case, bool, bytes], list[Tensor]] = OrderedDict()
KEPT = 64


def exact_column(case: Case, backward: bool, drawn: bytes, sequences, hx, groups) -> list[Tensor]:
    """What the oracle says."""
    key = (case, backward, drawn)
    if key not in _exact:
        xs, (h0, c0) = (leaves([t.double() for t in part]) for part in (sequences, hx))
        params = [leaves([t.double() for t in group]) for group in groups]
        outputs = oracle.lstm(xs, h0, c0, params, case.bidirectional)
        flat = [p for group in params for p in group]
        found = column(case, backward, outputs, xs, h0, c0, flat)
        _exact[key] = [t.detach() for t in found]
        if len(_exact) > KEPT:
            _exact.popitem(last=False)
    return _exact[key]


def results(case: Case, backward: bool):
    """Yields a name and the tensors of ours, of nn.LSTM and of the oracle."""
    drawn = torch.get_rng_state().numpy().tobytes()
    theirs, ours = case.modules()
    sequences, hx = case.sequences(), case.state()
    names = [f"gradient of sequence {b}" for b in range(len(sequences))]
    names += [f"gradient of {name}" for name in (["h0", "c0"] if case.hx else [])]
    names += [f"gradient of {name}" for name in ours._flat_weights_names]

    columns = []
    for module in (ours, theirs):
        xs, (h0, c0) = leaves(sequences), leaves(list(hx))
        flat = [p for group in module.all_weights for p in group]
        columns.append(column(case, backward, run(module, case, xs, (h0, c0)), xs, h0, c0, flat))
    columns.append(exact_column(case, backward, drawn, sequences, hx, theirs.all_weights))
    names = ["output", "h_n", "c_n", *(names if backward else [])]
    for name, *three in zip(names, *columns, strict=True):
        shapes = [t.shape for t in three]
        assert shapes[0] == shapes[1] == shapes[2], f"{name}: shapes {shapes}"
        yield name, three


def complaint(function):
    """Type and text of the exception."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    return caught.type, str(caught.value)
