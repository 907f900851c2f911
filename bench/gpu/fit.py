"""``python -m bench.gpu.fit FILE...``: fits the planner's cost table to what a GPU measured.

Prints the table for csrc/cuda/costs.h and every choice of the planner that it changes. Only what
the measured launches depend on moves; the sum over all of them of the squared logarithm of
estimated over measured time falls until no step of 2 % of any entry helps.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

Table = dict[str, float]
SIZES = (64, 128, 256, 512, 768, 1024, 1536, 2048)
BATCHES = (1, 8, 16, 64, 256)


@dataclass(frozen=True)
class Point:
    """A measured time, and how the planner is asked for its estimate."""

    request: str
    dtype: str
    hidden: int
    batch: int
    steps: int
    what: str  # "step_us", "start_us", "backward_step_us", "backward_start_us"
    measured: float

    def plan(self, extension: ModuleType, device: str) -> dict:
        return plan(
            extension, device, self.dtype, self.hidden, self.batch, self.steps, self.request
        )

    def __str__(self) -> str:
        return f"{self.request} {self.dtype} H={self.hidden} B={self.batch} {self.what}"


def plan(
    extension: ModuleType,
    device: str,
    dtype: str,
    hidden: int,
    batch: int,
    steps: int = 128,
    request: str = "",
    directions: int = 1,
) -> dict:
    return extension.plan(
        steps=steps,
        batch=batch,
        input_size=8,
        hidden_size=hidden,
        directions=directions,
        dtype="float32" if dtype == "tf32" else dtype,
        allow_tf32=dtype == "tf32",
        device=device,
        training=True,
        request=request,
    )


def points(report: dict) -> Iterator[Point]:
    """Every time of the sweep that means something: shorter ones are noise."""
    for case in report["cases"]:
        if case["kind"] != "sweep" or case["outcome"] != "ok":
            continue
        options = case["options"]
        for row in case["result"]["rows"]:
            for name, prefix in (("forward", ""), ("backward", "backward_")):
                for what in ("step_us", "start_us") if name in row else ():
                    value = row[name][what]
                    if value < 0.05 or (what == "start_us" and row["request"] == "steps"):
                        continue
                    yield Point(
                        row["request"], options["dtype"], options["hidden"], options["batch"],
                        options["lengths"][1], prefix + what, value,
                    )  # fmt: skip


def estimates(extension: ModuleType, device: str, measured: list[Point]) -> list[float]:
    """The planner's estimate of each point under the current table; 0 where it cannot run."""
    values = []
    for point in measured:
        facts = point.plan(extension, device)
        unmet = facts.get("backward_unmet" if point.what.startswith("backward") else "unmet")
        values.append(0.0 if unmet else facts[point.what])
    return values


def squares(
    extension: ModuleType, device: str, measured: list[Point]
) -> Iterator[tuple[float, float]]:
    """Weight, and squared logarithm of estimated over measured, of each point that can run."""
    for point, value in zip(measured, estimates(extension, device, measured), strict=True):
        if value > 0:
            # A start counts a tenth: it is paid once.
            weight = 0.1 if "start" in point.what else 1.0
            yield weight, math.log(value / point.measured) ** 2


def loss(extension: ModuleType, device: str, measured: list[Point]) -> float:
    return sum(weight * square for weight, square in squares(extension, device, measured))


def root_mean_square(extension: ModuleType, device: str, measured: list[Point]) -> float:
    """Of the logarithms, by the same weights; 0 where nothing that was measured can run."""
    found = list(squares(extension, device, measured))
    weights = sum(weight for weight, _ in found)
    return math.sqrt(sum(weight * square for weight, square in found) / weights) if weights else 0.0


def minimize(function: Callable[[Table], float], table: Table) -> Table:
    """By one entry at a time, in steps that shrink from 50 % to 2 %."""
    best, least = dict(table), function(table)
    for factor in (1.5, 1.15, 1.05, 1.02):
        improved = True
        while improved:
            improved = False
            for name in best:
                for step in (factor, 1 / factor):
                    trial = {**best, name: best[name] * step}
                    value = function(trial)
                    if value < least - 1e-9:
                        best, least, improved = trial, value, True
    return best


def fit(extension: ModuleType, device: str, measured: list[Point]) -> Table:
    """The table that estimates these points best; the extension keeps the one it had."""
    before = extension.cuda_latencies()

    def under(table: Table) -> float:
        extension.cuda_set_latencies(table)
        return loss(extension, device, measured)

    try:
        return minimize(under, before)
    finally:
        extension.cuda_set_latencies(before)


def choices(extension: ModuleType, device: str) -> dict[str, str]:
    """What the planner chooses, forward and backward, over a grid of sizes."""
    chosen = {}
    for dtype in ("bfloat16", "tf32"):
        for hidden in SIZES:
            for batch in BATCHES:
                facts = plan(extension, device, dtype, hidden, batch)
                for prefix in ("", "backward_"):
                    name = f"{dtype} H={hidden} B={batch} {prefix.rstrip('_') or 'forward'}"
                    parts = [facts[f"{prefix}algorithm"]]
                    for key in ("unit_tiles", "groups"):
                        if prefix + key in facts:
                            parts.append(f"{key} {facts[prefix + key]}")
                    chosen[name] = ", ".join(map(str, parts))
    return chosen


def show(extension: ModuleType, device: str, measured: list[Point], table: Table) -> None:
    before = extension.cuda_latencies()
    old_error, old = root_mean_square(extension, device, measured), choices(extension, device)
    extension.cuda_set_latencies(table)
    try:
        new_error, new = root_mean_square(extension, device, measured), choices(extension, device)
        values = estimates(extension, device, measured)
    finally:
        extension.cuda_set_latencies(before)
    print(
        f"{len(measured)} times; root mean square of the logarithm of estimated over measured, "
        "a start counted a tenth:"
    )
    print(f"  {old_error:.3f} before, {new_error:.3f} now")
    print("Latencies of csrc/cuda/costs.h:")
    for name, value in table.items():
        print(
            f"  {name} = {value:.3g};" + ("" if value == before[name] else f"  // {before[name]}")
        )
    print("Furthest off:")
    by_error = sorted(
        (abs(math.log(value / point.measured)), point, value)
        for point, value in zip(measured, values, strict=True)
        if value > 0
    )
    for _, point, value in by_error[:-11:-1]:
        print(f"  {point}: measured {point.measured:.2f}, estimated {value:.2f}")
    changed = [name for name in old if old[name] != new[name]]
    print(f"The planner would choose differently in {len(changed)} of {len(old)} cells:")
    for name in changed:
        print(f"  {name}: {old[name]} -> {new[name]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.fit", description=__doc__.replace("``", "")
    )
    parser.add_argument("file", type=Path, nargs="+", help="what python -m bench.gpu has written")
    parser.add_argument("--device", default="cuda:sm_90", help="whose limits the planner takes")
    options = parser.parse_args(arguments)
    from fused_lstm import _ops

    if _ops.extension is None:
        print("python -m bench.gpu.fit: the extension is not built", file=sys.stderr)
        return 1
    measured: list[Point] = []
    for file in options.file:
        try:
            measured += points(json.loads(file.read_text()))
            continue
        except (OSError, ValueError) as error:
            why = str(error)
        except (LookupError, TypeError) as error:
            why = f"it is not what python -m bench.gpu writes ({error!r})"
        print(f"python -m bench.gpu.fit: cannot read {file}: {why}", file=sys.stderr)
        return 1
    if not measured:
        print("python -m bench.gpu.fit: there are no times in that", file=sys.stderr)
        return 1
    table = fit(_ops.extension, options.device, measured)
    show(_ops.extension, options.device, measured, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
