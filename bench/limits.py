"""How fast a row can be on this machine: its limit.

Counted are, layer by layer, the longest of

- the matrix products at the multiply-add peak (`Workload.flops`: no activations, no recurrent
  product of a first step whose state is zero);
- for L2, the cache that all cores share, and memory each: the bytes that have to pass from there,
  at the rate measured with all threads reading at once. These are
  - the recurrent weights, W_hh and W_hr, once per step (twice in training: backward reads them
    too), each core its part of them; in a first step whose state is zero only W_hr;
  - W_ih once per call (likewise twice), as its product can be done for many steps at once;
  - input and output; in training both again, the gates and cell states that backward needs
    (written, and read again), and the gradients of input and output, as far as there are any.

A level counts only what the smaller caches cannot hold. So a limit is a time that no program can
beat, and seldom one that a program can reach. The layers' limits add up, as each waits for the one
below.
"""

from __future__ import annotations

from .floor import step_floor, steps_of
from .machine import Machine, machine
from .results import Limit
from .workload import TRAINING, LayerSize, Workload

PRODUCTS = "multiply-adds"
LEVELS = ("L2", "shared cache", "memory")


def beyond(all_bytes: float, facts: Machine) -> list[float]:
    """Of data that all cores read once: the bytes that come from each of LEVELS, or through it."""
    in_l1, in_l2 = facts.threads * facts.l1_bytes, facts.threads * facts.l2_bytes
    return [max(0.0, all_bytes - held) for held in (in_l1, in_l2, facts.shared_bytes)]


def sequence_bytes(workload: Workload, size: LayerSize, mode: str) -> float:
    """Of one layer: input and output; in training also gates, cell states, all gradients."""
    rows, directions = sum(workload.lengths()), workload.directions
    x, y = rows * size.input, rows * directions * size.output
    elements = x + y
    if mode == TRAINING:
        elements *= 2  # backward reads them for the gradients of the weights
        elements += 0 if workload.members else x  # its gradient: see `Workload.layer_flops`
        only_last = workload.last_step and size.last
        elements += workload.batch * directions * size.output if only_last else y
        elements += 2 * rows * directions * 5 * size.hidden  # 4 gates and c, written and read
    return elements * workload.dtype.itemsize


def layer_limit(workload: Workload, size: LayerSize, mode: str, facts: Machine) -> Limit:
    passes, from_zero = 2 if mode == TRAINING else 1, workload.starts_from_zero
    itemsize = workload.dtype.itemsize * workload.directions
    reads = (
        (passes * (workload.steps - from_zero), (size.recurrent + size.projection) * itemsize),
        (passes * from_zero, size.projection * itemsize),
        (passes, size.weights * itemsize),
        (1, sequence_bytes(workload, size, mode)),
    )
    moved = [0.0] * len(LEVELS)
    for times, read in reads:
        for k, each in enumerate(beyond(read, facts)):
            moved[k] += times * each
    rates = (facts.l2_rate, facts.shared_rate, facts.memory_rate)
    seconds = {PRODUCTS: workload.layer_flops(size, mode) / facts.flops}
    seconds |= {name: b / rate for name, b, rate in zip(LEVELS, moved, rates, strict=True)}
    by = max(seconds, key=seconds.__getitem__)
    return Limit(seconds[by], by, moved[0])


def cpu_limit(workload: Workload, mode: str, facts: Machine) -> Limit:
    """Seconds that one call takes at least; `by` is what the longest of its layers waits for."""
    layers = [layer_limit(workload, size, mode, facts) for size in workload.layer_sizes()]
    longest = max(layers, key=lambda each: each.seconds)
    return Limit(sum(each.seconds for each in layers), longest.by, sum(e.bytes for e in layers))


def limit_of(workload: Workload, mode: str, threads: int, device: str) -> Limit | None:
    """The limit of one call; None where the machine cannot be measured."""
    if device == "cuda":
        return Limit(step_floor(workload, mode) * steps_of(workload), "products or exchange")
    facts = machine(workload.dtype_name, threads)
    return cpu_limit(workload, mode, facts) if facts else None
