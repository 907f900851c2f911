"""Sphinx: `make docs`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
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
# Links that lead out of these pages are held by tests/test_docs.py.
suppress_warnings = ["myst.xref_missing"]
