"""What a run of the benchmark found, and the JSON that it is kept in."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .providers import BASELINE, FUSED, PROVIDERS
from .workload import Workload

INSTEAD = ("padded", "float32")  # other ways to run nn.LSTM, where it is slow
FORMAT = 2  # of the JSON; raised whenever an older reader would misunderstand it


class Spread(NamedTuple):
    """Median and quartiles."""

    low: float
    median: float
    high: float


def spread(values: list[float]) -> Spread:
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


@dataclass(frozen=True)
class Limit:
    """The least time a call can take on this machine, and what it is that takes it."""

    seconds: float
    by: str  # "multiply-adds", "L2", "shared cache", "memory"; on a GPU "products or exchange"
    bytes: float | None = None  # that pass from the caches and memory to the cores


@dataclass(frozen=True)
class Measurement:
    """One provider on one row."""

    seconds: list[float] = field(default_factory=list)  # per call, one entry per round
    first_call_memory: int | None = None  # the most that it holds, in bytes: see memory.py
    setup_seconds: float | None = None  # to compile
    error: float | None = None  # from float64, relative to the largest element; the worst tensor's
    error_ratio: float | None = None  # that over nn.LSTM's
    error_of_allowed: float | None = None  # that over what the tests allow
    failed: str = ""  # why there is no time: a wrong result, or what the provider said

    @property
    def time(self) -> Spread | None:
        return spread(self.seconds) if self.seconds else None


@dataclass(frozen=True)
class Result:
    """One row in one mode."""

    workload: Workload
    mode: str
    threads: int
    measurements: dict[str, Measurement]
    limit: Limit | None = None
    # Seconds for the row's products at the rate of oneDNN's micro-kernel on panels of its size, as
    # measured in each round.
    brgemm_seconds: list[float] = field(default_factory=list)
    again: int = 0  # rounds that do not count, as a core was missing: see watch.py
    disturbed: int = 0  # rounds that do count although one was

    @property
    def rounds(self) -> int:
        """That count."""
        return max((len(each.seconds) for each in self.measurements.values()), default=0)

    def time(self, provider: str = FUSED) -> Spread | None:
        measurement = self.measurements.get(provider)
        return measurement.time if measurement else None

    def faster(self, than: str = BASELINE, who: str = FUSED) -> Spread | None:
        """How many times faster a provider is: of the ratios of each round."""
        theirs, ours = self.measurements.get(than), self.measurements.get(who)
        if not (theirs and ours and theirs.seconds and ours.seconds):
            return None
        rounds = zip(theirs.seconds, ours.seconds, strict=True)
        return spread([a / b for a, b in rounds])

    def gain(self, who: str = FUSED) -> Spread | None:
        """Times faster than nn.LSTM in the form that a user would run here: the fastest that gives
        the same result.
        """
        forms = [n for n in INSTEAD if n in self.measurements]
        forms = [n for n in forms if self.measurements[n].error is not None]
        found = [self.faster(name, who) for name in (BASELINE, *forms)]
        return min((f for f in found if f), key=lambda f: f.median, default=None)

    def gflops(self, provider: str = FUSED) -> float | None:
        time = self.time(provider)
        return self.workload.flops(self.mode) / time.median / 1e9 if time else None

    def brgemm_gflops(self) -> float | None:
        if not self.brgemm_seconds:
            return None
        return self.workload.flops(self.mode) / spread(self.brgemm_seconds).median / 1e9

    def brgemm_share(self) -> float | None:
        """Rate of fused_lstm as a share of the micro-kernel's: of each round, the median."""
        ours = self.measurements.get(FUSED)
        if not (self.brgemm_seconds and ours and ours.seconds):
            return None
        rounds = zip(self.brgemm_seconds, ours.seconds, strict=True)
        return spread([least / taken for least, taken in rounds]).median

    def share(self, provider: str = FUSED) -> float | None:
        """Share of the machine's limit that a provider reaches; None where it computes in another
        arithmetic, whose limit is not known.
        """
        time = self.time(provider)
        known = time and self.limit and not PROVIDERS[provider].other_arithmetic
        return self.limit.seconds / time.median if known else None

    @property
    def key(self) -> tuple:
        """What makes rows of two runs the same row."""
        row = self.workload
        return (row.name, row.dtype_name, row.shape, self.mode, self.threads)


@dataclass(frozen=True)
class Disturbance:
    """One row while another process keeps one core busy."""

    workload: Workload
    mode: str
    threads: int
    alone: dict[str, float]  # median seconds by provider
    slowdowns: dict[str, list[float]]  # times slower than alone, one entry per try


@dataclass
class Run:
    environment: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    complete: bool = True  # every row that was asked for


def timing_json(measurement: Measurement) -> dict:
    """A measurement with its summary, for readers that are not this program."""
    time = measurement.time
    summary = {"median": time.median, "quartiles": [time.low, time.high]} if time else {}
    return {**summary, **dataclasses.asdict(measurement)}


def workload_json(workload: Workload) -> dict:
    return {**dataclasses.asdict(workload), "dtype": workload.dtype_name}


def result_json(result: Result) -> dict:
    faster = {name: result.faster(name) for name in result.measurements if name != FUSED}
    return {
        "workload": workload_json(result.workload),
        "mode": result.mode,
        "threads": result.threads,
        "limit": dataclasses.asdict(result.limit) if result.limit else None,
        "brgemm_seconds": result.brgemm_seconds,
        "brgemm_gflops": result.brgemm_gflops(),
        "again": result.again,
        "disturbed": result.disturbed,
        "providers": {n: timing_json(m) for n, m in result.measurements.items()},
        "times_faster_than": {n: f._asdict() for n, f in faster.items() if f},
        "gflops": {name: result.gflops(name) for name in result.measurements},
        "share_of_limit": {name: result.share(name) for name in result.measurements},
    }


def to_json(run: Run, bars: list | None = None) -> dict:
    """Everything a run found; times are seconds per call."""
    return {
        "format": FORMAT,
        "complete": run.complete,
        "environment": run.environment,
        "results": [result_json(result) for result in run.results],
        "one_core_busy": [
            {**dataclasses.asdict(each), "workload": workload_json(each.workload)}
            for each in run.disturbances
        ],
        "bars": [dataclasses.asdict(bar) for bar in bars or []],
    }


def known(cls: type, values: dict) -> dict:
    """The entries that are fields of a dataclass; the others were written for other readers."""
    names = {each.name for each in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if name in names}


def workload_from(values: dict) -> Workload:
    tuples = {name: tuple(each) for name, each in values.items() if isinstance(each, list)}
    dtype = getattr(torch, values["dtype"])
    return Workload(**known(Workload, {**values, **tuples, "dtype": dtype}))


def result_from(values: dict) -> Result:
    limit = values["limit"]
    return Result(
        workload_from(values["workload"]),
        values["mode"],
        values["threads"],
        {n: Measurement(**known(Measurement, m)) for n, m in values["providers"].items()},
        Limit(**limit) if limit else None,
        values.get("brgemm_seconds", []),
        values.get("again", 0),
        values.get("disturbed", 0),
    )


def from_json(values: dict) -> Run:
    """The inverse of `to_json`.

    Raises:
        ValueError: for the JSON of another version of the benchmark.
    """
    if values.get("format") != FORMAT:
        raise ValueError(f"it has format {values.get('format')}, this benchmark reads {FORMAT}")
    disturbances = [
        Disturbance(**{**each, "workload": workload_from(each["workload"])})
        for each in values["one_core_busy"]
    ]
    results = [result_from(each) for each in values["results"]]
    return Run(values["environment"], results, disturbances, values["complete"])


def load(path: Path) -> Run:
    """A run that was written to a file.

    Raises:
        OSError: where it cannot be read.
        ValueError: where it is not a result of this benchmark.
    """
    try:
        return from_json(json.loads(path.read_text()))
    except (KeyError, TypeError) as error:
        raise ValueError(f"it is not a result of the benchmark ({error!r})") from error


def check_writable(path: Path) -> None:
    """Whether `save` will be able to; makes the folder.

    Raises:
        OSError: where it will not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is there and no file")
    beside(path).touch()
    beside(path).unlink()


def beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def save(path: Path, values: dict) -> None:
    """All of it or, where that fails, nothing: what was there before stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside(path).write_text(json.dumps(values, indent=1) + "\n")
    beside(path).replace(path)
