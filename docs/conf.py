"""Sphinx: `make docs`."""

import os
import re
import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

project = "fused_lstm"
author = copyright = "the fused_lstm contributors"
release = re.search(r'__version__ = "(.+)"', (ROOT / "fused_lstm/__init__.py").read_text())[1]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fused_lstm {release}"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
myst_heading_anchors = 3

# Files outside of this folder, by the page that includes them.
INCLUDED = {
    "readme.md": "README.md",
    "examples.md": "examples/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
PAGE_OF = {ROOT / file: page for page, file in INCLUDED.items()}


def seen_from_here(text: str, folder: Path) -> str:
    """Links that are right in a file of this folder, as they have to be in a page of docs/."""

    def moved(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        path = (folder / target).resolve()
        if not path.is_file():  # an address, or a mistake that Sphinx finds
            return link[0]
        return f"]({PAGE_OF.get(path) or os.path.relpath(path, HERE)}{anchor})"

    return re.sub(r"\]\(([^)#\s]+)(#[^)\s]+)?\)", moved, text)


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Before a page of this folder is parsed."""
    source[0] = seen_from_here(source[0], HERE)


def read_included(app: Sphinx, path: Path, page: str, source: list[str]) -> None:
    """Before what a page includes is parsed."""
    source[0] = seen_from_here(source[0], (HERE / path).resolve().parent)


def copy_pictures(app: Sphinx, error: Exception | None) -> None:
    """Those of the README, which it names in HTML, to where its page looks for them."""
    folder = Path("bench", "results")
    (app.outdir / folder).mkdir(parents=True, exist_ok=True)
    for picture in (ROOT / folder).glob("*.png"):
        shutil.copy(picture, app.outdir / folder)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.connect("build-finished", copy_pictures)
