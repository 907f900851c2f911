"""``fused_lstm.LSTM``: the layer."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fused_lstm import layouts
from fused_lstm._checks import State
from fused_lstm._tracing import call_or_leaf, refuse_script
from fused_lstm.functional import lstm
from fused_lstm.streaming import Stream, refuse_both_directions

_ONE_BY_ONE = "assign to the weights of a fused_lstm.LSTM one by one, or by name"


class LSTM(torch.nn.RNNBase):
    """A drop-in for ``torch.nn.LSTM``: the same arguments, parameters, results and errors, faster.

    Checkpoints pass in both directions. It does not derive from ``torch.nn.LSTM``, because
    ``torch.compile`` refuses every instance of that class and breaks the graph there; test with
    ``isinstance(module, torch.nn.RNNBase)`` where both are meant.

    Args:
        input_size: features of the input.
        hidden_size: features of the state, H.
        num_layers: layers, each fed with the output of the one below.
        bias: whether there are ``b_ih`` and ``b_hh``.
        batch_first: whether dense input and output are ``[B, T, features]``; the state never is.
        dropout: probability of dropout between layers, in training mode.
        bidirectional: whether each layer also runs backwards in time.
        proj_size: features of the projected output, P; 0 for none, which makes P = H.
        device: of the parameters.
        dtype: of the parameters: float32, float64, bfloat16 or float16.
        recompute: the attribute of this name, which may be set at any time: k > 0 keeps every k-th
            state only in training, and backward computes k steps at once again. A call checks it.

    Raises:
        TypeError, ValueError, RuntimeError: what ``torch.nn.LSTM`` of the running release raises
            for sizes that are no int or too small, a ``proj_size`` that is not below
            ``hidden_size``, a ``dropout`` outside of 0 to 1, and a dtype without gradients.
    """

    recompute: int = 0  # of modules that were saved before there was one

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        recompute: int = 0,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        self.recompute = recompute

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_hx: State | None = None,
        return_cells: bool = False,
        return_gates: bool = False,
    ) -> tuple[Any, ...]:
        """Run the layers over ``input [T, B, I]``, ``[B, T, I]``, ``[T, I]`` or packed rows.

        Returns ``(output, (h_n, c_n))``, then cells and gates where they are asked for;
        :func:`fused_lstm.lstm` has the options, the shapes and the errors.
        """
        return lstm(
            input,
            hx,
            self._weights(),
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            training=self.training,
            lengths=lengths,
            reset=reset,
            reset_hx=reset_hx,
            return_cells=return_cells,
            return_gates=return_gates,
            recompute=self.recompute,
        )

    def step(self, input: Tensor, hx: State | None = None) -> tuple[Tensor, State]:
        """One step of ``input [B, I]`` from ``hx``: ``(y [B, P], (h, c))``, with gradients.

        ``hx`` and ``(h, c)`` are ``[L, B, P]`` and ``[L, B, H]``; None for ``hx`` means zeros.
        :meth:`stream` is faster where many steps follow without gradients.

        Raises:
            ValueError: for a bidirectional layer.
            RuntimeError: for an input of another rank.
        """
        refuse_both_directions(self, "step()")
        if input.dim() != 2:
            raise RuntimeError(f"step() takes input [B, I], got {input.dim()}-D input")
        y, hx = self(input.unsqueeze(1 if self.batch_first else 0), hx)
        return y.squeeze(1 if self.batch_first else 0), hx

    def stream(self, batch: int = 1) -> Stream:
        """What runs a sequence that comes in pieces: holds the state, weights packed once.

        ``y = stream(x)`` takes a step ``[B, I]`` to ``[B, P]``, or a chunk ``[T, B, I]`` to
        ``[T, B, P]`` (time first whatever ``batch_first``); see :class:`fused_lstm.Stream`.

        Raises:
            TypeError: for a batch that is no int.
            ValueError: for a bidirectional layer, and for a batch below 1.
        """
        return Stream(self, batch)

    from_concatenated = classmethod(layouts.from_concatenated)
    to_concatenated = layouts.to_concatenated
    from_keras = classmethod(layouts.from_keras)
    to_keras = layouts.to_keras
    from_haste = classmethod(layouts.from_haste)
    to_haste = layouts.to_haste

    def _weights(self) -> list[list[Tensor]]:
        """``all_weights``, quickly where all of them are plain parameters.

        Looked up by name in each call: ``weight_norm``, parametrizations, ``functional_call`` and
        data parallelism all put other tensors in their place.
        """
        parameter = self._parameters.__getitem__
        try:
            return [list(map(parameter, group)) for group in self._all_weights]
        except KeyError:
            # Not all_weights: where a weight is missing, the error would be that there is no
            # all_weights, for torch.nn.Module looks for the property then.
            return [[getattr(self, name) for name in group] for group in self._all_weights]

    @property
    def _flat_weights(self) -> _FlatWeights:
        """The weights in one list, as ``RNNBase`` names them; never kept, so never out of date."""
        return _FlatWeights(self)

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor | None]) -> None:
        current = self._flat_weights
        for k, weight in enumerate(weights):
            current[k] = weight

    def _init_flat_weights(self) -> None:
        """Do nothing: there is no list to bring up to date."""

    def _weights_have_changed(self) -> bool:
        """Since the list was brought up to date, which it always is."""
        return False

    def __setattr__(self, name: str, value: Any) -> None:
        """As of any module: ``RNNBase`` would bring its list of weights up to date here."""
        torch.nn.Module.__setattr__(self, name, value)

    # For subclasses with a forward of their own: nn.LSTM's, on the state of two tensors.
    get_expected_cell_size = torch.nn.LSTM.get_expected_cell_size
    check_forward_args = torch.nn.LSTM.check_forward_args
    permute_hidden = torch.nn.LSTM.permute_hidden

    def flatten_parameters(self) -> None:
        """Do nothing: the kernels read the weights wherever they lie."""

    _call_impl = call_or_leaf
    __prepare_scriptable__ = refuse_script


class _FlatWeights(list):
    """The weights of a layer in order. To assign to one is to assign to the layer by its name."""

    def __init__(self, layer: LSTM) -> None:
        super().__init__(getattr(layer, name, None) for name in layer._flat_weights_names)
        self._layer = layer

    def __setitem__(self, k: Any, weight: Any) -> None:
        """Set the layer's attribute.

        Raises:
            TypeError: for a plain tensor in the place of a parameter, as from any module: delete
                the parameter first, then set the attribute.
        """
        if isinstance(k, slice):
            raise TypeError(_ONE_BY_ONE)
        if weight is not self[k]:
            setattr(self._layer, self._layer._flat_weights_names[k], weight)
            super().__setitem__(k, weight)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is a plain list."""
        return list, (list(self),)

    def _refuse(self, *args: Any) -> NoReturn:
        raise TypeError(_ONE_BY_ONE)

    # Of a list that is made anew each time, nobody would see the change.
    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __delitem__ = __iadd__ = __imul__ = _refuse
