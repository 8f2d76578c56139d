"""Modules of tests/targets that tests of the native decoder share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "targets"))
