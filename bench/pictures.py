"""The pictures; each is None where a run has no rows for it."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from . import units
from .providers import BASELINE, FUSED
from .report import SLOWER
from .results import Result, Run
from .style import Style, marked
from .workloads import GRID, MODES, TRAINING

BOTH = (BASELINE, FUSED)
CEILINGS = (
    ("L2", "l2_rate", "-"),
    ("shared cache", "shared_rate", "--"),
    ("memory", "memory_rate", ":"),
)


def plain_ticks(axis: Axis) -> None:
    """1, 2, 5, 10 and so on along a logarithmic axis; over many decades 1, 10, 100."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


# How many times faster, row by row


def rows_by_group(run: Run) -> dict[str, dict[str, dict[str, Result]]]:
    """Results by group, row and mode; the grid has a picture of its own."""
    groups: dict[str, dict[str, dict[str, Result]]] = {}
    for result in run.results:
        row = result.workload
        if row.group != GRID and result.mode in MODES and result.faster():
            groups.setdefault(row.group, {}).setdefault(row.name, {})[result.mode] = result
    return groups


def draw_faster(run: Run, style: Style) -> Figure | None:
    """A marker for every row and mode, with the quartiles as a line through it."""
    groups = rows_by_group(run)
    if not groups:
        return None
    lines = sum(len(rows) + 1 for rows in groups.values())
    figure, axes = plt.subplots(figsize=(7, 1 + 0.2 * lines))
    beside = {"transform": axes.get_yaxis_transform(), "va": "center"}  # x from 0 to 1
    columns = dict(zip(MODES, (1.07, 1.17), strict=True))
    for mode, x in columns.items():
        axes.text(x, -0.2, mode, **beside, ha="right", fontsize=7)
    names, y = {}, 0
    for group, rows in groups.items():
        axes.text(-0.01, y := y + 1, group, **beside, ha="right", weight="bold")
        for name, modes in rows.items():
            names[y := y + 1] = name
            for mode, result in modes.items():
                draw_spread(axes, result, y + (0.16 if mode == TRAINING else -0.16), style)
                text = units.times(result.faster().median)
                axes.text(columns[mode], y, text, **beside, ha="right")
    axes.axvline(1, color=style.ink, linewidth=1)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    axes.set_yticks(list(names), list(names.values()))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y + 1, 0)
    axes.grid()
    axes.set_xlabel(f"times faster than {BASELINE}; lines span the quartiles")
    handles = [Line2D([], [], label=mode, **marked(style, mode)) for mode in MODES]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return figure


def draw_spread(axes: Axes, result: Result, y: float, style: Style) -> None:
    found, look = result.faster(), marked(style, result.mode)
    axes.plot([found.low, found.high], [y, y], color=look["color"], linewidth=1.5)
    axes.plot(found.median, y, linestyle="", **look)


# Batch and hidden size


def grid_of(run: Run) -> tuple[list[Result], list[str]]:
    """The grid's results, and the modes that there are of it."""
    grid = [r for r in run.results if r.workload.group == GRID and r.faster()]
    return grid, [mode for mode in MODES if any(r.mode == mode for r in grid)]


def draw_grid(run: Run, style: Style) -> Figure | None:
    """Times faster for every batch and hidden size: a number in each cell, hatched where slower."""
    grid, modes = grid_of(run)
    if not grid:
        return None
    batches = sorted({r.workload.batch for r in grid})
    sizes = sorted({r.workload.hidden[0] for r in grid})
    norm = TwoSlopeNorm(1.0, 0.5, max(2.0, *(r.faster().median for r in grid)))
    width = 1 + 0.62 * len(sizes) * len(modes)
    height = 1 + 0.4 * len(batches)
    figure, panels = plt.subplots(
        1, len(modes), figsize=(width, height), squeeze=False, sharey=True
    )
    for axes, mode in zip(panels[0], modes, strict=True):
        for result in (r for r in grid if r.mode == mode):
            place = sizes.index(result.workload.hidden[0]), batches.index(result.workload.batch)
            draw_cell(axes, *place, result.faster().median, norm)
        axes.set_xlim(-0.5, len(sizes) - 0.5)
        axes.set_ylim(len(batches) - 0.5, -0.5)
        axes.set_xticks(range(len(sizes)), sizes)
        axes.set_yticks(range(len(batches)), batches)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("hidden size (hatched: slower)")
        axes.set_title(f"{mode}: times faster than {BASELINE}")
    panels[0][0].set_ylabel("batch")
    figure.tight_layout()
    return figure


def draw_cell(axes: Axes, x: int, y: int, value: float, norm: TwoSlopeNorm) -> None:
    shade = plt.get_cmap("PuOr_r")(norm(value))
    luminance = 0.30 * shade[0] + 0.59 * shade[1] + 0.11 * shade[2]  # of ITU-R BT.601
    ink = "white" if luminance < 0.5 else "black"
    hatch = "////" if value < SLOWER else None
    axes.add_patch(
        Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=shade, hatch=hatch, linewidth=0)
    )
    behind = {"facecolor": shade, "linewidth": 0, "pad": 1}
    axes.text(x, y, units.times(value), ha="center", va="center", color=ink, bbox=behind)


# Share of what the machine can do


def in_roofline(r: Result, threads: int) -> bool:
    float32 = r.workload.dtype_name == "float32" and r.threads == threads
    known = r.limit is not None and r.limit.bytes and any(r.gflops(name) for name in BOTH)
    return bool(float32 and known)


def draw_roofline(run: Run, style: Style) -> Figure | None:
    """Both libraries' float32 rows under the machine's limits."""
    facts, threads = run.environment["machine"], run.environment["threads"]
    rows = [r for r in run.results if in_roofline(r, threads)]
    if not facts or not rows:
        return None
    figure, axes = plt.subplots(figsize=(7, 4.4))
    intensity = [r.workload.flops(r.mode) / r.limit.bytes for r in rows]
    x = np.geomspace(min(intensity) / 2, max(intensity) * 2, 100)
    peak = facts["flops"] / 1e9
    for name, key, line in CEILINGS:
        rate = facts[key] / 1e9
        label = f"{name}, {rate:.0f} GB/s"
        axes.plot(x, np.minimum(peak, x * rate), line, color=style.ink, linewidth=1, label=label)
    axes.text(x[-1], peak, f"{peak:.0f} GFLOP/s", ha="right", va="bottom")
    for r, at in zip(rows, intensity, strict=True):
        both = [rate for rate in (r.gflops(name) for name in BOTH) if rate]
        axes.plot([at] * len(both), both, color=style.faint, linewidth=0.8, zorder=1)
    for name in BOTH:
        points = [(at, r.gflops(name)) for r, at in zip(rows, intensity, strict=True)]
        plot_points(axes, points, linestyle="", label=name, **marked(style, name))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7 * min(y for r in rows for n in BOTH if (y := r.gflops(n))))
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.grid()
    axes.set_xlabel("operations for each byte from beyond L1")
    axes.set_ylabel("GFLOP/s")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    return figure


def plot_points(axes: Axes, points: list[tuple[float, float | None]], **look: object) -> None:
    """Those that were measured."""
    if measured := [(x, y) for x, y in points if y is not None]:
        axes.plot(*zip(*measured, strict=True), **look)


# Time of a step


def draw_steps(run: Run, style: Style) -> Figure | None:
    """Microseconds per step against H, for the smallest batch of the grid and the middle one."""
    grid, modes = grid_of(run)
    if not grid:
        return None
    batches = sorted({r.workload.batch for r in grid})
    shown = dict(zip(sorted({batches[0], batches[len(batches) // 2]}), ("-", "--"), strict=False))
    figure, panels = plt.subplots(
        1, len(modes), figsize=(3.8 * len(modes), 3.4), squeeze=False, sharey=True
    )
    sizes = sorted({r.workload.hidden[0] for r in grid})
    for axes, mode in zip(panels[0], modes, strict=True):
        members = [r for r in grid if r.mode == mode]
        for batch, line in shown.items():
            rows = sorted((r for r in members if r.workload.batch == batch), key=hidden_size)
            for name in BOTH:
                points = [(hidden_size(r), step_microseconds(r, name)) for r in rows]
                label = f"{name}, B={batch}"
                plot_points(axes, points, linestyle=line, label=label, **marked(style, name))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
        axes.set_xticks(sizes, sizes)
        axes.grid()
        axes.set_xlabel("hidden size")
        axes.set_title(mode)
    panels[0][0].set_ylabel("microseconds per step")
    panels[0][0].legend()
    figure.tight_layout()
    return figure


def hidden_size(result: Result) -> int:
    return result.workload.hidden[0]


def step_microseconds(result: Result, name: str) -> float | None:
    time = result.time(name)
    return 1e6 * time.median / result.workload.steps if time else None


PICTURES: dict[str, Callable[[Run, Style], Figure | None]] = {
    "faster": draw_faster,
    "grid": draw_grid,
    "roofline": draw_roofline,
    "steps": draw_steps,
}
