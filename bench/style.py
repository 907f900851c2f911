"""How pictures look: on a light and on a dark page, and for eyes that see no colours."""

from __future__ import annotations

from dataclasses import dataclass

from .providers import BASELINE, FUSED
from .workload import INFERENCE, TRAINING


@dataclass(frozen=True)
class Style:
    name: str
    paper: str
    ink: str
    faint: str
    blue: str
    orange: str


# Blue and orange of Okabe and Ito's palette, which differ for any kind of colour vision. Whatever
# a colour says, a marker, a hatch or a number says too.
STYLES = (
    Style("light", "#ffffff", "#1f2328", "#c8ccd1", "#0072b2", "#d55e00"),
    Style("dark", "#0d1117", "#e6edf3", "#484f58", "#56b4e9", "#e69f00"),
)


def marked(style: Style, what: str) -> dict[str, object]:
    """Colour and marker of a library or a mode."""
    if what in (FUSED, INFERENCE):
        return {"color": style.blue, "marker": "o", "markerfacecolor": style.blue}
    assert what in (BASELINE, TRAINING)
    return {"color": style.orange, "marker": "s", "markerfacecolor": style.paper}


def settings(style: Style) -> dict[str, object]:
    """matplotlib's, for everything that is not data."""
    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    paper = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
    return {
        **dict.fromkeys(ink, style.ink),
        **dict.fromkeys(paper, style.paper),
        "grid.color": style.faint,
        "grid.linewidth": 0.5,
        "legend.edgecolor": style.faint,
        "legend.framealpha": 1.0,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "font.size": 9,
        "hatch.linewidth": 0.6,
        "lines.markersize": 5,
        "savefig.dpi": 160,
        "savefig.bbox": "tight",
    }
