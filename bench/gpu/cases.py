"""The cases, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

ALGORITHMS = ("steps", "block", "cluster", "grid")  # the safest first
DTYPES = ("float32", "bfloat16", "tf32", "float16", "float64")
# Largest hidden size of each algorithm, for forward and backward on an H100, that is tried.
LARGEST = {
    "steps": dict.fromkeys(DTYPES, 1024),
    "block": {"float32": 96, "bfloat16": 160, "tf32": 96, "float16": 160, "float64": 64},
    "cluster": {"float32": 96, "bfloat16": 256, "tf32": 128, "float16": 256, "float64": 64},
    "grid": {"float32": 512, "bfloat16": 1024, "tf32": 1024, "float16": 1024, "float64": 320},
}
PACKED = (37, 37, 35, 20, 17, 16, 16, 9, 2, *[1] * 20)


@dataclass(frozen=True)
class Case:
    """What one process does; `kind` names a function of worker.py."""

    kind: str
    options: dict = field(default_factory=dict)
    build: str = "plain"  # or "trace", which says where a poll hangs
    wrapper: tuple[str, ...] = ()  # a command that runs it, such as a profiler
    limit: float = 20.0  # seconds

    def __str__(self) -> str:
        return " ".join([self.kind, *(f"{k}={v}" for k, v in self.options.items())])

    def to_json(self) -> dict:
        return asdict(self)


def correctness(quick: bool) -> Iterator[Case]:
    """Every algorithm and dtype, forward and backward, against float64; twice the same bits."""
    for algorithm in ALGORITHMS:
        for dtype in DTYPES[1:2] if quick else DTYPES:
            largest = LARGEST[algorithm][dtype]
            sizes = [(9, 3, 5), (largest, 19, 20)]
            sizes += [] if quick else [(largest // 2 - 7, 64, 40)]
            for hidden, batch, steps in [sizes[0]] if quick else sizes:
                options = {"algorithm": algorithm, "dtype": dtype, "hidden": hidden}
                options.update(batch=batch, steps=steps)
                yield Case("correct", options, "trace")
            # What users run has no stamps and no watchdog; its polls are other code.
            if dtype in ("float32", "bfloat16"):
                yield Case("correct", options)
            options = {"algorithm": algorithm, "dtype": dtype, "hidden": 9 if quick else 40}
            yield Case("correct", {**options, "packed": True, "directions": 2}, "trace")
    if quick:
        return
    for unit_tiles in (1, 2, 4):
        for groups in (1, 2):
            algorithm = f"grid,unit_tiles={unit_tiles},groups={groups}"
            options = {"algorithm": algorithm, "dtype": "bfloat16", "hidden": 500}
            yield Case("correct", {**options, "batch": 40, "steps": 40}, "trace")


def checkers(algorithm: str) -> tuple[str, ...]:
    """Tools of compute-sanitizer that know what the kernels of an algorithm do.

    In a cluster a warp polls words of its block's shared memory that another one, or another block,
    stores: no barrier lies between, which is what racecheck reports.
    """
    return ("memcheck",) if algorithm == "cluster" else ("memcheck", "racecheck")


def checker(tool: str) -> tuple[str, ...]:
    """The command: of the kernels' accesses, and not of calls that libraries try and see fail."""
    options = ["--report-api-errors", "no"] if tool == "memcheck" else []
    return ("compute-sanitizer", "--tool", tool, *options, "--error-exitcode", "7")


def behaviour(quick: bool) -> Iterator[Case]:
    """CUDA graphs, two streams, and the checkers on one small case per algorithm."""
    for algorithm in ALGORITHMS[:2] if quick else ALGORITHMS:
        options = {"algorithm": algorithm, "dtype": "bfloat16", "hidden": 40, "batch": 17}
        yield Case("graph", options)
        # Of a size of which one call alone takes the whole device.
        large = {"hidden": 40 if quick else LARGEST[algorithm]["bfloat16"], "batch": 64}
        yield Case("streams", {**options, **large, "steps": 100})
        for tool in checkers(algorithm):
            small = {"algorithm": algorithm, "dtype": "bfloat16", "hidden": 17, "steps": 9}
            yield Case("run", {**small, "directions": 2}, wrapper=checker(tool), limit=120)


def exchanges(quick: bool) -> Iterator[Case]:
    """An all-gather through L2 alone, with the fence in each place and without."""
    for kib in (16,) if quick else (16, 32, 128):
        for blocks in (4,) if quick else (64, 128):
            for fence in ("early", "late", "third", "none"):
                yield Case("exchange", {"kib": kib, "blocks": blocks, "fence": fence})


def stamps(quick: bool) -> Iterator[Case]:
    """Clocks of one warp inside a step."""
    for hidden, batch in ((24, 3),) if quick else ((512, 16), (1024, 16), (256, 64)):
        for algorithm in ("grid",) if quick or hidden > 256 else ("cluster", "grid"):
            options = {"algorithm": algorithm, "hidden": hidden, "batch": batch}
            yield Case("stamps", {**options, "steps": 20 if quick else 200}, "trace")


def sweep_requests(dtype: str, hidden: int, batch: int) -> list[str]:
    """The algorithms, unit tiles and groups worth timing at a size."""
    row_tiles = -(-batch // 16)
    groups = [g for g in (1, 2, 4, 8) if g <= row_tiles]
    requests = ["steps"]
    requests += ["block"] if hidden <= LARGEST["block"][dtype] else []
    requests += ["cluster"] if hidden <= LARGEST["cluster"][dtype] else []
    for unit_tiles in (1, 2, 4):
        requests += [f"grid,unit_tiles={unit_tiles},groups={g}" for g in groups]
    return requests


def sweep(quick: bool) -> Iterator[Case]:
    """Times of forward and backward at two lengths; one process per size."""
    hidden_sizes = (24,) if quick else (64, 128, 256, 512, 768, 1024, 1536)
    for dtype in ("bfloat16",) if quick else ("bfloat16", "tf32"):
        for hidden in hidden_sizes:
            for batch in (3,) if quick else (16, 64, 256):
                options = {"dtype": dtype, "hidden": hidden, "batch": batch}
                requests = sweep_requests(dtype, hidden, batch)
                lengths = (5, 10) if quick else (64, 256)
                options = {**options, "requests": requests, "lengths": lengths}
                yield Case("sweep", options, limit=40)


def profiles(quick: bool) -> Iterator[Case]:
    """Hardware counters of one launch each."""
    command = ("ncu", "--clock-control", "none", "--set", "full", "--kernel-name", "regex:sliced")
    for hidden, batch in ((24, 3),) if quick else ((512, 16), (1024, 16), (256, 64)):
        options = {"algorithm": "cluster" if hidden == 256 else "grid", "dtype": "bfloat16"}
        options.update(hidden=hidden, batch=batch, steps=20)
        yield Case("run", options, wrapper=command, limit=60)


PHASES = {
    make.__name__: make for make in (correctness, behaviour, exchanges, stamps, sweep, profiles)
}


def all_cases(quick: bool, phases: Sequence[str] = tuple(PHASES)) -> Iterator[Case]:
    for name, make in PHASES.items():
        if name in phases:
            yield from make(quick)
