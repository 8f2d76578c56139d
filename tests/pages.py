"""The pages of this repository, and their code blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# Beside the repository's folders may stand an environment, and a model that the README's first command exported.
FOLDERS = ["doge_export", "plugins", "samples", "tests"]
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in [ROOT / "README.md", *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md")))]
    if not {"golden", "build", "node_modules"} & {*page.relative_to(ROOT).parts}
}


class Block(NamedTuple):
    """A fenced block of code under a heading of a page."""

    page: str
    heading: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}: {self.heading} ({self.language})"


def _blocks() -> list[Block]:
    found, heading, fence = [], "", None
    for page, text in PAGES.items():
        for line in text.splitlines(keepends=True):
            if fence is None and line.startswith("#"):
                heading = line.strip("# \n")
            elif line.lstrip().startswith("```"):
                if fence is None:
                    fence, code = line.strip().removeprefix("```"), ""
                else:
                    found.append(Block(page, heading, fence, code))
                    fence = None
            elif fence is not None:
                code += line
    return found


BLOCKS = _blocks()


def block(page: str, heading: str, language: str = "bash") -> str:
    """The code of the one block of this language under a heading."""
    (found,) = [each for each in BLOCKS if (each.page, each.heading, each.language) == (page, heading, language)]
    return found.code


def lines_of(program: str) -> list[str]:
    """The lines of every page that call a program, continued lines joined."""
    text = "\n".join(PAGES.values()).replace("\\\n", " ")
    return re.findall(rf"^ *({program} .*)$", text, re.MULTILINE)
