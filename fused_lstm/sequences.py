"""What a call of a layer may say of its sequences, and ask of them, beyond ``torch.nn.LSTM``.

Lengths of padded input, resets at the boundaries of episodes, c and the gates of every step, and
memory for time in training. On the CPU all of it is one fused op per layer, which walks live rows
only, where they lie, and which ``vmap`` knows; on other devices, under other transforms and without
the extension the reference computes it step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fused_lstm import _onnx, _ops, _transforms, autograd, reference
from fused_lstm._checks import State, pair

Layer = Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass
class SequenceCall:
    """One call with any of these options; holds what its last layer leaves for the results.

    Attributes:
        lengths: ``[B]``, any integer dtype, on any device: live steps of each row; None for all.
        reset: bool, shaped as the input without features: whether a row's state is replaced before
            a step; None for never.
        reset_hx: what it is replaced with, shaped as ``hx`` or with 1 in the place of B; None for
            zeros.
        return_cells: whether c of every step is asked for.
        return_gates: whether the gates are.
        recompute: steps of which backward computes the gates again at once; 0 for none.
        by_reference: whether the reference runs every layer, for the ops do not.
    """

    lengths: Tensor | None = None
    reset: Tensor | None = None
    reset_hx: State | None = None
    return_cells: bool = False
    return_gates: bool = False
    recompute: int = 0
    by_reference: bool = field(default=False, init=False)
    _batch_first: bool = field(default=False, init=False)
    _inside: tuple[Tensor, Tensor] | None = field(default=None, init=False)

    @property
    def is_plain(self) -> bool:
        """Whether it asks for nothing but ``recompute``, so that a plain call has its results."""
        return not (
            self.lengths is not None
            or self.reset is not None
            or self.return_cells
            or self.return_gates
        )

    def check(self, input: Tensor | PackedSequence, batch_first: bool, groups: int) -> None:
        """Refuse what does not fit the input, whose batch may be first.

        Args:
            input: of the call.
            batch_first: whether it and ``reset`` have the batch first.
            groups: layers times directions.

        Raises:
            TypeError: for a mask that is not bool, lengths of no integer dtype, or recompute that
                is no int.
            ValueError: for all else.
        """
        self._batch_first = batch_first
        if not isinstance(self.recompute, int):
            raise TypeError(f"expected recompute as an int, got {type(self.recompute).__name__}")
        if self.recompute < 0:
            raise ValueError(f"expected recompute of at least 0, got {self.recompute}")
        if self.reset_hx is not None and self.reset is None:
            raise ValueError("reset_hx is the state after a reset: it needs the mask reset")
        if isinstance(input, PackedSequence):
            if self.lengths is not None or self.reset is not None:
                raise ValueError(
                    "lengths and reset are for padded input, a PackedSequence has lengths of its "
                    "own: pass one or the other"
                )
            return
        if input.dim() not in (2, 3):
            return  # the layer says so
        if self.lengths is not None:
            self._check_lengths(input)
        if self.reset is not None:
            self._check_reset(input, groups)

    def _check_lengths(self, input: Tensor) -> None:
        if not isinstance(self.lengths, Tensor):
            raise TypeError(f"expected lengths as a tensor, got {type(self.lengths).__name__}")
        dtype = self.lengths.dtype
        if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
            raise TypeError(f"expected lengths of an integer dtype, got {dtype}")
        if input.dim() == 2:
            raise ValueError("lengths are for batched input: cut an unbatched sequence instead")
        batch = input.shape[0 if self._batch_first else 1]
        if self.lengths.dim() != 1 or self.lengths.shape[0] != batch:
            raise ValueError(f"expected lengths of shape [{batch}], got {list(self.lengths.shape)}")

    def _check_reset(self, input: Tensor, groups: int) -> None:
        if not isinstance(self.reset, Tensor) or self.reset.dtype != torch.bool:
            kind = getattr(self.reset, "dtype", type(self.reset).__name__)
            raise TypeError(f"expected reset as a tensor of dtype torch.bool, got {kind}")
        if self.reset.shape != input.shape[:-1]:
            raise ValueError(
                f"expected reset of shape {list(input.shape[:-1])}, that of the input without "
                f"features, got {list(self.reset.shape)}"
            )
        if self.reset_hx is None:
            return
        batch = 1 if input.dim() == 2 else input.shape[0 if self._batch_first else 1]
        dims = input.dim()
        for state in pair(self.reset_hx, "reset_hx of two tensors, or None for zeros"):
            fits = state.dim() == dims and state.shape[0] == groups
            if not fits or (dims == 3 and state.shape[1] not in (1, batch)):
                shape = f"{groups}, features" if dims == 2 else f"{groups}, {batch} or 1, features"
                raise ValueError(
                    f"expected states of shape [{shape}] in reset_hx, got {list(state.shape)}"
                )

    def layers(self, x: Tensor, groups: int) -> Layer:
        """What runs one layer after the other on ``x [T, B, I]`` or packed ``[N, I]``.

        Raises:
            NotImplementedError: on the way to ONNX, unless a plain layer has the same results.
        """
        if torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export():
            if not self.is_plain:
                _onnx.refuse(
                    "lengths, resets, cells and gates are not exported to ONNX: export a call "
                    "without them"
                )
            return autograd.lstm_layer
        lengths, reset = self.lengths, self.reset
        if lengths is not None:
            lengths = lengths.to(x.device)
        if reset is not None:
            reset = reset.to(x.device)
            if reset.dim() == 1:
                reset = reset.unsqueeze(1)
            elif self._batch_first:
                reset = reset.transpose(0, 1)
        states = self._reset_states(x)
        done = 0

        def layer(
            x: Tensor,
            batch_sizes: Tensor | None,
            h0: Tensor | None,
            c0: Tensor | None,
            weights: list[Tensor],
            reverse: list[bool],
        ) -> tuple[Tensor, Tensor, Tensor]:
            nonlocal done
            own = [None if s is None else s[done : done + len(reverse)] for s in states]
            done += len(reverse)
            inside = (self.return_cells or self.return_gates) and done == groups
            y, h_n, c_n, gates, c = self._run(
                x, batch_sizes, h0, c0, weights, reverse, lengths, reset, *own, inside=inside
            )
            if inside:
                self._inside = (gates, c)
            return y, h_n, c_n

        return layer

    def _reset_states(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """``reset_hx`` of all layers as the op takes it: ``[L*D, B, features]``."""
        if self.reset_hx is None:
            return None, None
        h, c = (
            (s.unsqueeze(1) if s.dim() == 2 else s).to(x.dtype).expand(-1, x.shape[1], -1)
            for s in self.reset_hx
        )
        return h, c

    def _run(self, x: Tensor, *args: Any, inside: bool) -> tuple[Tensor | None, ...]:
        reason, plain = unavailable(x), self.lengths is None and self.reset is None and not inside
        fused = reason is None and not self.by_reference and _transforms.only_mapped()
        if plain and not self.by_reference and not (fused and torch.is_grad_enabled()):
            return (*autograd.lstm_layer(x, *args[:5]), None, None)
        if not fused:
            if reason is not None and not self.by_reference:
                _ops.warn_fallback(reason)
            return reference.lstm_sequence(x, *args)
        keep_every = self.recompute if torch.is_grad_enabled() and not inside else 0
        # What is saved has as many rows as the input in a program, whose shapes know no lengths,
        # and where the caller sees it.
        compiling = torch.compiler.is_compiling()
        compact = not (inside or compiling)
        return _ops.lstm_sequence(x, *args, inside or keep_every > 0, keep_every, compact)

    def results(
        self, output: Tensor | PackedSequence, state: State
    ) -> tuple[Tensor | PackedSequence | State, ...]:
        """The layer's results, and what else is asked for."""
        found: tuple[Any, ...] = (output, state)
        if self._inside is None:
            return found
        gates, c = self._inside
        self._inside = None
        for asked, t in ((self.return_cells, c), (self.return_gates, gates.detach())):
            if asked:
                found = (*found, self._as_output(t, output))
        return found

    def _as_output(self, t: Tensor, output: Tensor | PackedSequence) -> Tensor | PackedSequence:
        """``[D, N, features]`` in the form and the dtype of the output."""
        rows = t.transpose(0, 1).flatten(1)
        if isinstance(output, PackedSequence):
            rows = rows.to(output.data.dtype)
            return PackedSequence(
                rows, output.batch_sizes, output.sorted_indices, output.unsorted_indices
            )
        rows = rows.to(output.dtype)
        if output.dim() == 2:
            return rows
        if not self._batch_first:
            return rows.view(*output.shape[:2], rows.shape[1])
        return rows.view(output.shape[1], output.shape[0], rows.shape[1]).transpose(0, 1)


def unavailable(x: Tensor) -> str | None:
    """Why the op of these options does not run where plain layers have one; None where it does."""
    if x.device.type not in ("cpu", "meta"):
        return f"lengths, resets, cells and recompute have no kernel on '{x.device.type}' yet"
    return None
