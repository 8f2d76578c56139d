"""Commands of other tools that the README tells a user to run."""

from __future__ import annotations

import re
from pathlib import Path


def readme_lines(program: str) -> list[str]:
    """Those lines that call it, continued lines joined."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(rf"^ *({program} .*)$", text, re.MULTILINE)
