"""``LSTM.stream()``: a few steps at a time, the state and packed weights kept from call to call."""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fused_lstm import _ops, _transforms
from fused_lstm._checks import State, pair

if TYPE_CHECKING:
    from fused_lstm.module import LSTM


STATES = "states (h, c), two tensors"


def refuse_both_directions(layer: LSTM, what: str) -> None:
    """Raise where a layer needs the end of a sequence before its beginning.

    Raises:
        ValueError: for a bidirectional layer.
    """
    if layer.bidirectional:
        raise ValueError(
            f"{what} goes forward in time only, and this layer is bidirectional: its backward "
            "direction begins with the last step of a sequence"
        )


def _batch_size(batch: Any) -> int:
    """``batch`` as an int.

    Raises:
        TypeError: for anything that is no integer, and for a bool.
    """
    try:
        if not isinstance(batch, bool):
            return operator.index(batch)
    except TypeError:
        pass
    raise TypeError(f"expected batch as an int, got {type(batch).__name__}")


def _mode(name: str) -> Any:
    """The active mode of PyTorch's own by this name, where the release has one so called."""
    try:
        return torch._C._get_dispatch_mode(getattr(torch._C._TorchDispatchModeKey, name))
    except AttributeError:
        return None


class Stream:
    """Runs a layer over a sequence that comes in pieces, for inference.

    On the CPU the weights are packed once for this machine and all layers run in one call, without
    allocation but for the output. Where a weight has been changed in place, moved, converted or
    replaced since, the next call packs again; the state follows the layer to its dtype and device.
    Dropout is not applied and no gradient is recorded. Calls from several threads take turns.

    A stream cannot be traced, exported or called with fake tensors: it says so. Modes that watch
    operations, as ``FlopCounterMode`` does, see those of the layer, which runs in place of the
    packed weights while one is active, and as it does for weights of a tensor subclass.

    Args:
        layer: of one direction.
        batch: B, rows of every call.

    Raises:
        TypeError: for a batch that is no int.
        ValueError: for a bidirectional layer, and for a batch below 1.
    """

    def __init__(self, layer: LSTM, batch: int = 1) -> None:
        refuse_both_directions(layer, "stream()")
        batch = _batch_size(batch)
        if batch < 1:
            raise ValueError(f"expected a batch of at least 1, got {batch}")
        self._layer, self._batch = layer, batch
        self._rows = (batch, layer.input_size)
        self._lock = threading.Lock()
        self._begin(None)

    # The state is changed in any mode, so it is not made in inference mode.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _begin(self, state: State | None) -> None:
        """Pack the weights that the layer has now."""
        layer = self._layer
        weights = layer.all_weights
        like = weights[0][0]
        ids = self._weight_ids()
        # Weights that are computed in each call, as by parametrizations, cannot be kept.
        plain = all(
            id(w) in ids and type(w) in (Tensor, Parameter) for group in weights for w in group
        )
        if (
            plain
            and like.is_cpu
            and _ops.unavailable(like.device, like.dtype) is None
            and all(map(_ops.extension.Stream.takes, weights))
        ):
            kernels = _ops.extension.Stream(weights, self._batch)
            h, c = kernels.h, kernels.c
        else:
            kernels, shape = None, (layer.num_layers, self._batch)
            h = like.new_zeros(*shape, layer.proj_size or layer.hidden_size)
            c = like.new_zeros(*shape, layer.hidden_size)
        self._kernels, self._h, self._c = kernels, h, c
        if state is not None:
            self.state = state
        self._dtype, self._device, self._ids = like.dtype, like.device, ids
        self._parameter = self._followed()

    def _followed(self) -> Tensor:
        """What says which dtype and device the layer has: a parameter, or a weight that is none."""
        for parameter in self._layer.parameters():
            return parameter
        return self._layer.weight_ih_l0

    def _weight_ids(self) -> list[int]:
        return [*map(id, self._layer._parameters.values())]

    def _layer_has_changed(self) -> bool:
        """Whether it has other weights now, or these in another dtype or on another device."""
        now = self._followed()
        return (
            self._ids != self._weight_ids()
            or now.dtype != self._dtype
            or now.device != self._device
        )

    def _refuse_trace(self) -> None:
        """Raise where operations are recorded, or computed for shapes that the state lacks."""
        if torch.compiler.is_dynamo_compiling():
            return
        # Nobody traces with a module that has not been imported.
        proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")
        if (
            torch.jit.is_tracing()
            or (proxies is not None and proxies.get_proxy_mode() is not None)
            or _mode("FUNCTIONAL") is not None
            or (_mode("FAKE") is not None and type(self._h) is Tensor)
        ):
            raise RuntimeError(
                "a stream cannot be traced: call the layer itself, `y, state = lstm(x, state)`, "
                "and carry the state"
            )

    def _follow_layer(self) -> None:
        self._refuse_trace()
        with self._lock:
            if self._layer_has_changed():
                self._begin(self.state)

    def __call__(self, x: Tensor) -> Tensor:
        """The output ``[B, P]`` of one step ``x [B, I]``, or ``[T, B, P]`` of ``[T, B, I]``.

        Raises:
            RuntimeError: for another shape, dtype or device, and for an input whose gradient or
                tangent would have to be recorded, or that a transform maps over; for a tensor
                that is not plain numbers in memory, and where the call is traced.
        """
        shape = x.shape
        if len(shape) not in (2, 3) or shape[-2:] != self._rows:
            rows = f"{self._rows[0]}, {self._rows[1]}]"
            raise RuntimeError(f"expected x of shape [{rows}, or [T, {rows}, got {list(shape)}")
        if self._parameter.dtype != self._dtype or self._ids != self._weight_ids():
            self._follow_layer()
        if x.dtype != self._dtype or x.device != self._device:
            self._follow_layer()
            if x.dtype != self._dtype or x.device != self._device:
                raise RuntimeError(
                    f"expected x of {self._dtype} on {self._device}, got {x.dtype} on {x.device}"
                )
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "a stream records no gradients: call the layer itself, or detach the input"
            )
        if self._kernels is not None:
            y = self._kernels.run(x)
            if y is not None:  # else a mode watches what is called
                return y
        self._refuse_trace()
        if _transforms.transformed():
            raise RuntimeError(
                "a stream takes part in no transform and carries no tangent: call the layer "
                "itself, or detach the input"
            )
        with self._lock, self._turn(), torch.no_grad():
            return self._by_layer(x)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Other threads may run the kernels on the same state."""
        kernels = self._kernels
        if kernels is not None:
            kernels.begin_turn()
        try:
            yield
        finally:
            if kernels is not None:
                kernels.end_turn()

    def _by_layer(self, x: Tensor) -> Tensor:
        """What the layer makes of ``x`` without dropout, after its hooks: they may set weights."""
        # The layer itself may be in use elsewhere, so it keeps its mode.
        layer = object.__new__(type(self._layer))
        vars(layer).update(vars(self._layer), training=False, _compiled_call_impl=None)
        steps = x if x.dim() == 3 else x.unsqueeze(0)
        if layer.batch_first:
            steps = steps.transpose(0, 1)
        y, (h, c) = layer(steps, (self._h.to(x.dtype), self._c.to(x.dtype)))
        self._h.copy_(h)
        self._c.copy_(c)
        if layer.batch_first:
            y = y.transpose(0, 1)
        return y if x.dim() == 3 else y.squeeze(0)

    @property
    def outdated(self) -> bool:
        """Whether a weight has changed since they were packed, so that the next call packs again.

        A change is seen by the weight itself, its memory, its version counter and eight of its
        elements, two rows of each gate. What the counter misses, as steps of fused optimizers and
        changes of ``.data``, is found if it touches one of these in some weight, as an optimizer's
        step does.
        """
        if self._layer_has_changed():
            return True
        return self._kernels is not None and self._kernels.outdated

    @property
    def state(self) -> State:
        """``(h [L, B, P], c [L, B, H])``, as the layer returns it: a copy; assign to set it.

        Raises:
            ValueError: for states of other shapes, or not two of them; nothing is set then.
        """
        return self._h.to(self._dtype, copy=True), self._c.to(self._dtype, copy=True)

    @state.setter
    def state(self, state: State) -> None:
        pairs = [*zip((self._h, self._c), pair(state, STATES, Tensor), strict=True)]
        for own, given in pairs:
            if given.shape != own.shape:
                raise ValueError(
                    f"expected states of shape {list(own.shape)}, got {list(given.shape)}"
                )
        for own, given in pairs:
            # PyTorch's copy between float16 and float32 takes no notice of a negated view.
            own.copy_(given.detach().resolve_neg())

    def reset(self, rows: Tensor | Sequence[int] | int | None = None, to: Any = None) -> None:
        """Set the state of these rows, or of all, to zero or to ``to``.

        Args:
            rows: one index or several, or a bool mask ``[B]``.
            to: ``(h, c)`` of shape ``[L, 1, P]`` and ``[L, 1, H]``, or with the number of rows in
                the place of 1.

        Raises:
            IndexError: for a row that is not there, and a mask of another shape.
            RuntimeError: for states of shapes that do not fit; nothing is set then.
            ValueError: for anything but two of them.
        """
        which: Tensor | slice = slice(None)
        if rows is not None:
            which = torch.as_tensor(rows, device=self._h.device).reshape(-1)
            if which.numel() == 0:
                which = which.long()  # no row; the dtype says nothing
        own = (self._h, self._c)
        given = (0.0, 0.0) if to is None else pair(to, STATES, object)
        values = [
            torch.as_tensor(value, dtype=t.dtype, device=t.device).detach().expand_as(t[:, which])
            for t, value in zip(own, given, strict=True)
        ]
        for t, value in zip(own, values, strict=True):
            t[:, which] = value
