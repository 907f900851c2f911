"""Writes what the committed runs of the benchmark say into README.md: `make numbers`.

A run is a file bench/results/NAME.json, one for each processor or GPU; its pictures lie beside it,
as `python -m bench.plot` writes them.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench import results, summary, units  # noqa: E402
from bench.results import Run  # noqa: E402
from bench.summary import Means  # noqa: E402
from bench.workloads import INFERENCE, TRAINING  # noqa: E402

FOLDER = "bench/results"


def runs(root: Path = ROOT) -> dict[str, Run]:
    """By name of the file, without its ending."""
    return {path.stem: results.load(path) for path in sorted((root / FOLDER).glob("*.json"))}


def machine_of(run: Run) -> str:
    """Such as "2 cores of an AMD EPYC (family 25, model 17; AVX-512)"."""
    facts = run.environment
    if facts["device"] != "cpu":
        return facts["gpu"]
    _, family, model = (*facts["cpu_kind"].split(), "", "", "")[:3]
    isa = facts["isa"].upper().replace("AVX512", "AVX-512").replace("_", " and ")
    article = "an" if facts["cpu"][0] in "AEIOU" else "a"
    name = f"{facts['threads']} cores of {article} {facts['cpu']}"
    return f"{name} (family {family}, model {model}; {isa})" if family else f"{name} ({isa})"


def summary_of(stem: str, run: Run, root: Path = ROOT) -> str:
    """What a user gains, in a sentence and a picture."""
    said = summary.headline(run)
    for here in ("this machine", "this GPU"):
        said = said.replace(f"on {here} is", f"on {machine_of(run)} is", 1)
    shown = picture(stem, "faster", "Times faster than nn.LSTM as it is, row by row", root)
    return f"{wrapped(said)}\n\n{shown}"


def numbers_of(stem: str, run: Run, root: Path = ROOT) -> str:
    """A table of the groups of rows, how accurate they were, and how to measure the same."""
    facts = run.environment
    lines = [
        f"### {machine_of(run)}",
        "",
        wrapped(
            "Times faster than nn.LSTM as it is; in the last line, as in the sentence at the top, "
            f"than {summary.FASTEST_FORM}:"
        ),
        "",
        *table_of("rows", summary.means_by_group(run.results)),
    ]
    if lacking := list(summary.features(run.results)):
        lines += ["", *table_of("what nn.LSTM lacks, times faster", lacking)]
    lines += ["", wrapped(accuracy_of(run)), ""]
    lines.append(
        wrapped(
            f"Measured on {facts['date'][:10]} with torch {facts['torch']} and fused_lstm "
            f"{facts['fused_lstm']} at commit {facts['commit']}, by `{facts['command']}`. "
            f"Everything is in [{stem}.json]({FOLDER}/{stem}.json)."
        )
    )
    for name, alt in (
        ("grid", "Times faster by batch and hidden size"),
        ("steps", "Microseconds for each step by hidden size"),
        ("roofline", "Operations a second under the limits of the machine"),
    ):
        if shown := picture(stem, name, alt, root):
            lines += ["", shown]
    return "\n".join(lines)


def table_of(heading: str, means: Iterable[Means]) -> list[str]:
    """Of Markdown, a line each."""
    lines = [
        f"| {heading} | number | inference: slowest | mean | training: slowest | mean |",
        "|---|---|---|---|---|---|",
    ]
    for each in means:
        cells = [each.group, str(each.rows)]
        for mode in (INFERENCE, TRAINING):
            found = each.modes.get(mode)
            cells += [units.times(found.slowest), units.times(found.mean)] if found else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def accuracy_of(run: Run) -> str:
    """How much of the error that is allowed was found; what that is, the README says once."""
    said = [
        f"{units.percent(share)} in {mode} (`{result.workload.name}`)"
        for mode, (share, result) in summary.worst_errors(run.results).items()
    ]
    if not said:
        return "This run did not keep how much of the allowed error its rows had."
    return f"Largest error against float64, of the one allowed above: {', '.join(said)}."


def wrapped(text: str) -> str:
    """Lines that are no longer than the others of the README."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def picture(stem: str, name: str, alt: str, root: Path = ROOT) -> str:
    """HTML for a picture on a light and on a dark page; "" where there is none."""
    light, dark = (f"{FOLDER}/{stem}-{name}-{style}.png" for style in ("light", "dark"))
    if not (root / light).exists():
        return ""
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'  <img alt="{alt}" src="{light}">\n'
        "</picture>"
    )


def block(name: str, text: str) -> str:
    """What stands in the README between two comments."""
    return f"<!-- {name}: written by `make numbers` -->\n{text}\n<!-- end of {name} -->"


def updated(readme: str, root: Path = ROOT) -> str:
    """The README with the blocks of the runs that there are."""
    found = runs(root)
    texts = {
        "summary": [summary_of(stem, run, root) for stem, run in list(found.items())[:1]],
        "numbers": [numbers_of(stem, run, root) for stem, run in found.items()],
    }
    for name, parts in texts.items():
        pattern = rf"<!-- {name}: .*?<!-- end of {name} -->"
        new = block(name, "\n\n".join(parts))
        readme, count = re.subn(pattern, lambda _, new=new: new, readme, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"README.md has {count} blocks named {name}, expected one")
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text()))
