"""Pictures of a run: `python -m bench.plot results.json`, or `fused_lstm.bench.plot`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from . import INSTALL
from .results import Run, load


def machine_name(run: Run) -> str:
    """Where a picture is from: processor or GPU, threads and commit."""
    facts = run.environment
    device = facts.get("gpu") or f"{facts['cpu']} ({facts['cpu_kind']}), {facts['isa']}"
    cap = f", capped to {facts['isa_cap']}" if facts["isa_cap"] else ""
    return (
        f"{device}{cap}, {facts['threads']} threads; torch {facts['torch']}, "
        f"fused_lstm {facts['fused_lstm']} {facts['commit']}"
    )


def draw_all(run: Run, folder: Path, stem: str) -> list[Path]:
    """Writes every picture that the run has the rows for, for a light and for a dark page."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from .pictures import PICTURES
    from .style import STYLES, settings

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for style in STYLES:
        with plt.rc_context(settings(style)):
            for name, draw in PICTURES.items():
                figure = draw(run, style)
                if figure is None:
                    continue
                figure.axes[0].annotate(
                    machine_name(run),
                    (0, 0),
                    (0, -38),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    fontsize=6.5,
                )
                path = folder / f"{stem}-{name}-{style.name}.png"
                figure.savefig(path)
                plt.close(figure)
                written.append(path)
    return written


def main(arguments: list[str] | None = None) -> int:
    program = f"python -m {__package__}.plot"
    parser = argparse.ArgumentParser(prog=program, description="Draws what --json wrote.")
    parser.add_argument("results", type=Path, nargs="+", help="files that --json wrote")
    parser.add_argument("--out", type=Path, help="folder for the pictures; without: the results'")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("matplotlib") is None:
        print(f"{program} needs matplotlib: {INSTALL}", file=sys.stderr)
        return 1
    for path in options.results:
        try:
            run = load(path)
        except (OSError, ValueError) as error:
            print(f"{program}: cannot read {path}: {error}", file=sys.stderr)
            return 1
        for picture in draw_all(run, options.out or path.parent, path.stem):
            print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
