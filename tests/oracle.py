"""A float64 LSTM that shares no code and no idea with the package, and how errors are judged."""

from __future__ import annotations

import torch
from torch import Tensor


def lstm(
    sequences: list[Tensor],
    h0: Tensor,
    c0: Tensor,
    params: list[list[Tensor]],
    bidirectional: bool = False,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Each sequence ``[T_b, I]`` by itself, one step at a time, in float64.

    Args:
        sequences: one per batch entry; the lengths may differ.
        h0: ``[L*D, B, P]``.
        c0: ``[L*D, B, H]``.
        params: ``all_weights`` of the layer.
        bidirectional: whether every second group of ``params`` walks backwards.

    Returns:
        The outputs ``[T_b, D*P]``, ``h_n`` and ``c_n``. Differentiable.
    """
    params = [[p.double() for p in group] for group in params]
    outputs, h_ns, c_ns = [], [], []
    for b, sequence in enumerate(sequences):
        steps, finals_h, finals_c = list(sequence.double().unbind(0)), [], []
        directions = 2 if bidirectional else 1
        for first in range(0, len(params), directions):
            walked = []
            for k in range(first, first + directions):
                order = steps[::-1] if k > first else steps
                hs, h, c = _walk(order, h0[k, b].double(), c0[k, b].double(), params[k])
                walked.append(hs[::-1] if k > first else hs)
                finals_h.append(h)
                finals_c.append(c)
            steps = [torch.cat(parts) for parts in zip(*walked, strict=True)]
        outputs.append(torch.stack(steps))
        h_ns.append(torch.stack(finals_h))
        c_ns.append(torch.stack(finals_c))
    return outputs, torch.stack(h_ns, 1), torch.stack(c_ns, 1)


def _walk(
    steps: list[Tensor], h: Tensor, c: Tensor, group: list[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    w_ih, w_hh = group[:2]
    biases = [p for p in group[2:] if p.dim() == 1]
    projections = [p for p in group[2:] if p.dim() == 2]
    size = len(w_ih) // 4
    hs = []
    for x in steps:
        z = w_ih @ x + w_hh @ h + sum(biases)
        i, f = torch.sigmoid(z[:size]), torch.sigmoid(z[size : 2 * size])
        g, o = torch.tanh(z[2 * size : 3 * size]), torch.sigmoid(z[3 * size :])
        c = f * c + i * g
        h = o * torch.tanh(c)
        for w_hr in projections:
            h = w_hr @ h
        hs.append(h)
    return hs, h, c


def assert_as_accurate(ours: Tensor, theirs: Tensor, exact: Tensor, what: str) -> None:
    """Our largest error is at most twice that of ``nn.LSTM`` in this dtype; of a gradient, thrice.

    The floor is one unit in the last place of the largest element, or four where there are so few
    elements that which of the two errs less is a matter of luck. In float64 the oracle errs as they
    do, and much as ``nn.LSTM``, whose operations it shares: eight units, of at least one.
    """
    assert ours.dtype == theirs.dtype, f"{what}: dtype {ours.dtype}, nn.LSTM gives {theirs.dtype}"
    if not exact.numel():
        return
    factor = 3 if what.startswith("gradient") else 2
    ours_error = (ours.double() - exact).abs().max().item()
    theirs_error = (theirs.double() - exact).abs().max().item()
    largest, units = exact.abs().max().item(), 1 if exact.numel() >= 256 else 4
    if ours.dtype == torch.float64:
        largest, units = max(1.0, largest), 8
    floor = units * torch.finfo(ours.dtype).eps * largest
    assert ours_error <= factor * theirs_error + floor, (
        f"{what}: error {ours_error:.3g}, nn.LSTM has {theirs_error:.3g} (floor {floor:.3g})"
    )
