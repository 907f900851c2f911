"""`python -m bench` in a checkout, `python -m fused_lstm.bench` where the package is installed."""

from __future__ import annotations

import importlib.util
import sys

from . import INSTALL

if importlib.util.find_spec("rich") is None:
    sys.exit(f"python -m {__package__} needs rich: {INSTALL}")

from .suite import main

if __name__ == "__main__":
    sys.exit(main(__package__))
