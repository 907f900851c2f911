"""``profile()``: what :func:`replace_lstm` gains in a model, as a whole and LSTM by LSTM."""

from __future__ import annotations

import argparse
import importlib
import inspect
import math
import re
import statistics
import sys
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fused_lstm._calls import Call, tensors
from fused_lstm._explain import explain
from fused_lstm.cell import LSTMCell
from fused_lstm.module import LSTM
from fused_lstm.replace import replace_lstm, restore_lstm

_SHORTEST = 0.01  # seconds of one measurement: far above the clock's resolution
_KEPT_CALLS = 8  # calls of one LSTM with input of different shapes that are measured on their own


@dataclass(frozen=True)
class LSTMProfile:
    """One LSTM or LSTMCell of the model; times are seconds for all of its calls in one run."""

    name: str  #: of the module in the model
    shapes: list[tuple[int, ...]]  #: of its input, each once
    calls: int  #: in one run
    algorithms: list[str]  #: what explain() says of its layers
    before: float  #: with torch.nn
    after: float
    difference: float | None  #: of outputs, relative to the largest element; None: nothing to see


@dataclass(frozen=True)
class Profile:
    """What :func:`profile` found; ``str()`` gives the lines that it prints."""

    before: float  #: seconds of one run with torch.nn's LSTMs
    after: float  #: and with those of this package
    difference: float | None  #: of outputs, relative to the largest element; None: nothing to see
    backward: bool  #: whether gradients were computed too
    threads: int
    lstms: list[LSTMProfile]
    left_alone: list[str]  #: what replace_lstm says of LSTMs that it does not swap

    def __str__(self) -> str:
        what = "forward and backward" if self.backward else "forward"
        lines = [
            f"the model, {what}, {self.threads} threads: {_ms(self.before)} -> {_ms(self.after)}, "
            f"{self.before / self.after:.2f} times faster, {_differ(self.difference)}"
        ]
        for each in self.lstms:
            shares = f"{each.before / self.before:.0%} -> {each.after / self.after:.0%}"
            shapes = ", ".join(str(list(shape)) for shape in each.shapes)
            lines += [
                f"{each.name}: input {shapes}, {each.calls} call{'s' * (each.calls != 1)}",
                f"    {_ms(each.before)} -> {_ms(each.after)}, "
                f"{each.before / each.after:.2f} times faster, {shares} of the model, "
                f"{_differ(each.difference)}",
                *(f"    {line}" for line in each.algorithms),
            ]
        return "\n".join([*lines, *self.left_alone])


def profile(
    model: nn.Module,
    example_inputs: Any,
    *,
    backward: bool = False,
    rounds: int = 7,
    say: Callable[[str], object] | None = print,
) -> Profile:
    """Run a model before and after :func:`replace_lstm`, by turns, and say what it gains.

    The whole model is timed, and each LSTM alone on the input that it gets in the model. The model
    is left as it was found, whichever LSTMs it has: so are its buffers, which a forward pass in
    training mode may change, and the state of the random numbers.

    Outputs are the tensors of floating point in what the model returns: in tuples, lists, mappings
    and dataclasses.

    Args:
        model: any module; its training mode is kept.
        example_inputs: a tuple of positional arguments, a mapping of keyword arguments, or the one
            argument.
        backward: also compute the gradients of every parameter that requires one, of the sum of
            all outputs; without, gradients are not recorded.
        rounds: measurements of each, at least 1, whose median is reported.
        say: called with the report; None for silence.

    Returns:
        The report as a value.

    Raises:
        ValueError: if the model has no LSTM that can be swapped, none is called, or one with
            options that torch.nn.LSTM does not take or by methods that it has not; with
            ``backward``, if no output requires a gradient; for no rounds.
    """
    if rounds < 1:
        raise ValueError(f"expected at least 1 round, got {rounds}")
    with _left_as_found(model):
        found = _profile(model, Call.of(example_inputs), backward, rounds)
    if say:
        say(str(found))
    return found


def _profile(model: nn.Module, arguments: Call, backward: bool, rounds: int) -> Profile:
    left_alone: list[str] = []
    restore_lstm(model, say=None)
    lstms = _swappable(model, left_alone)
    if not lstms:
        raise ValueError("the model has no torch.nn.LSTM or LSTMCell that can be swapped")
    seen, derived = _watch(model, arguments, lstms, backward)
    if not seen:
        raise ValueError("these inputs reach no LSTM of the model")
    if backward and not derived:
        raise ValueError(
            "expected outputs that require a gradient, of a parameter or an input, for backward: "
            "found none in tuples, lists, mappings and dataclasses of what the model returns"
        )
    before, after = _by_turns(model, _runner(model, [arguments], backward), rounds)
    return Profile(
        before,
        after,
        _difference(model, [arguments]),
        backward,
        torch.get_num_threads(),
        [_profile_lstm(lstms[m], m, calls, backward, rounds) for m, calls in seen.items()],
        left_alone,
    )


@contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    """The LSTMs that the model has, its buffers and the random numbers."""
    fused = [m for m in model.modules() if isinstance(m, (LSTM, LSTMCell))]
    buffers = [
        (m, name, t, t.detach().clone())
        for m in model.modules()
        for name, t in m._buffers.items()
        if t is not None
    ]
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.is_cuda}
    with torch.random.fork_rng([*devices]):
        try:
            yield
        finally:
            restore_lstm(model, say=None)
            for module in fused:
                replace_lstm(module, say=None)
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    module._buffers[name] = buffer.copy_(value)


def _swappable(model: nn.Module, left_alone: list[str]) -> dict[nn.Module, str]:
    """Modules that replace_lstm would swap, with their names; it is not swapped afterwards."""
    replace_lstm(model, say=lambda line: left_alone.append(line) if ": left as " in line else None)
    found = {m: name for name, m in model.named_modules() if isinstance(m, (LSTM, LSTMCell))}
    restore_lstm(model, say=None)
    return {module: name or "the model itself" for module, name in found.items()}


def _watch(
    model: nn.Module, arguments: Call, lstms: dict[nn.Module, str], backward: bool
) -> tuple[dict[nn.Module, dict[tuple, list]], bool]:
    """The calls of each LSTM in one run: ``[call, how often]`` for each set of shapes.

    And whether gradients were computed in it.
    """
    seen: dict[nn.Module, dict[tuple, list]] = {}

    def remember(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        _refuse_options(lstms[module], kwargs)
        call = Call(args, kwargs)
        calls = seen.setdefault(module, {})
        key = call.shapes() if len(calls) < _KEPT_CALLS else next(iter(calls))
        calls.setdefault(key, [call.detached(), 0])[1] += 1

    hooks = [m.register_forward_pre_hook(remember, with_kwargs=True) for m in lstms]
    try:
        derived = _runner(model, [arguments], backward)()
    except AttributeError as error:
        if error.obj in lstms and hasattr(LSTM, error.name):
            _refuse(lstms[error.obj], f"by .{error.name}", "has not")
        raise
    finally:
        for hook in hooks:
            hook.remove()
    return seen, derived


def _refuse_options(name: str, kwargs: dict[str, Any]) -> None:
    fused, plain = (inspect.signature(c.forward).parameters.keys() for c in (LSTM, nn.LSTM))
    options = [option for option in kwargs if option in fused - plain]
    if options:
        _refuse(name, f"with {', '.join(options)}", "does not take")


def _refuse(name: str, how: str, lacks: str) -> NoReturn:
    raise ValueError(
        f"the model calls {name} {how}, which torch.nn.LSTM {lacks}: there is nothing to compare "
        "it with, so profile a model that calls it without"
    )


def _runner(model: nn.Module, calls: list[Call], backward: bool) -> Callable[[], bool]:
    """A function that runs the model on each of the calls, and says if it computed gradients."""

    def run() -> bool:
        derived = False
        for call in calls:
            with torch.set_grad_enabled(backward):
                outputs = [t for t in tensors(model(*call.args, **call.kwargs)) if t.requires_grad]
            if outputs and (wanted := _wanted(model, call)):
                ones = [torch.ones_like(t) for t in outputs]
                torch.autograd.grad(outputs, wanted, ones, allow_unused=True)
                derived = True
        return derived

    return run


def _wanted(model: nn.Module, call: Call) -> list[Tensor]:
    """What gradients are computed of."""
    candidates = (*model.parameters(), *tensors((call.args, call.kwargs)))
    return [t for t in candidates if t.requires_grad]


def _by_turns(module: nn.Module, run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of ``run`` with torch.nn's LSTMs in ``module``, and with the fused ones."""
    # It loads all that compiles extensions, setuptools too, which takes longer than the package.
    from torch.utils.benchmark.utils.timer import timer

    seconds: dict[Callable, list[float]] = {restore_lstm: [], replace_lstm: []}

    def measure(swap: Callable, repeats: int) -> float:
        swap(module, say=None)
        run()  # not timed: it finds nothing in the caches, and the very first measures the machine
        return timeit.Timer(run, timer=timer).timeit(repeats) / repeats

    shortest = min(measure(swap, 1) for swap in seconds)
    repeats = max(1, math.ceil(_SHORTEST / max(shortest, 1e-9)))
    for turn in range(rounds):
        for swap in list(seconds) if turn % 2 else list(reversed(seconds)):
            seconds[swap].append(measure(swap, repeats))
    restore_lstm(module, say=None)
    before, after = (statistics.median(each) for each in seconds.values())
    return before, after


@contextmanager
def _eval(module: nn.Module) -> Iterator[None]:
    """Without dropout, which makes two runs differ by more than their arithmetic."""
    modes = {each: each.training for each in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes.items():
            each.training = mode


def _difference(module: nn.Module, calls: list[Call]) -> float | None:
    """Largest difference of outputs with and without fused LSTMs, over the largest element.

    Of those of floating point; None where there are none.
    """
    results = []
    with _eval(module), torch.no_grad():
        for swap in (restore_lstm, replace_lstm):
            swap(module, say=None)
            results.append(
                [t.double() for call in calls for t in tensors(module(*call.args, **call.kwargs))]
            )
    restore_lstm(module, say=None)
    pairs = [(a, b) for a, b in zip(*results, strict=True) if a.numel()]
    relative = (((a - b).abs().max() / a.abs().max().clamp_min(1e-300)).item() for a, b in pairs)
    return max(relative, default=None)


def _profile_lstm(
    name: str, module: nn.Module, seen: dict[tuple, list], backward: bool, rounds: int
) -> LSTMProfile:
    before = after = 0.0
    for call, times in seen.values():
        one = _by_turns(module, _runner(module, [call], backward), rounds)
        before, after = before + times * one[0], after + times * one[1]
    calls = [call for call, _ in seen.values()]
    inputs = map(_input, calls)
    shapes = [tuple((x.data if isinstance(x, PackedSequence) else x).shape) for x in inputs]
    return LSTMProfile(
        name,
        list(dict.fromkeys(shapes)),
        sum(times for _, times in seen.values()),
        _algorithms(module, calls[0], backward),
        before,
        after,
        _difference(module, calls),
    )


def _input(call: Call) -> Tensor | PackedSequence:
    """Of an LSTM; in a call by keywords a state may come before it."""
    return call.args[0] if call.args else call.kwargs["input"]


def _algorithms(module: nn.Module, call: Call, backward: bool) -> list[str]:
    """What explain() says of each layer; layers that do the same share a line."""
    replace_lstm(module, say=None)
    with torch.set_grad_enabled(backward):
        lines = explain(module, _input(call)).splitlines()[1:]
    restore_lstm(module, say=None)
    layers: dict[str, list[str]] = {}
    for line in lines:
        if not line.startswith("    "):  # those are details of the one above
            layer, _, what = line.strip().partition(": ")
            layers.setdefault(what, []).append(layer)
    return [f"{', '.join(names)}: {what}" for what, names in layers.items()]


def _differ(difference: float | None) -> str:
    if difference is None:
        return "no outputs of floating point to compare"
    return f"outputs differ by {difference:.1e}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def main(arguments: list[str]) -> int:
    """``python -m fused_lstm profile module:function``."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_lstm profile",
        description="Run a model before and after replace_lstm, by turns, and say what it gains.",
    )
    parser.add_argument(
        "target", metavar="module:function", help="the function returns (model, example_inputs)"
    )
    parser.add_argument("--backward", action="store_true", help="also compute gradients")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each (7)")
    options = parser.parse_args(arguments)
    model, inputs = _load(options.target, parser.error)
    try:
        profile(model, inputs, backward=options.backward, rounds=options.rounds)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def _load(target: str, refuse: Callable[[str], NoReturn]) -> tuple[nn.Module, Any]:
    """Model and inputs that ``module:function`` returns."""
    if not re.fullmatch(r"\w[\w.]*:\w+", target):
        refuse(f"expected module:function, got '{target}'")
    module, function = target.split(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        refuse(f"{target}: {error}")
    if not callable(make):
        refuse(f"expected {target} to be a function, got {type(make).__name__}")
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        refuse(f"expected {target} to take nothing, got one that lacks arguments: {error}")
    made = make()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        refuse(f"{target} has to return (model, example_inputs), got {type(made).__name__}")
    return made
