"""The build hook of an install, over a copy of what it reads of a checkout."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from doge_export.plugin import install_hook

ROOT = Path(__file__).parents[2]


def hook_in(folder: Path) -> tuple[install_hook.NativeDecoderHook, list[str]]:
    """The hook over a copy in `folder`, and the lines that it says."""
    for part in ("cpu", "ort"):
        shutil.copytree(ROOT / "plugins" / part, folder / "root" / "plugins" / part)
    (folder / "root" / "doge_export").mkdir()
    said: list[str] = []
    app = SimpleNamespace(display_info=said.append)
    return install_hook.NativeDecoderHook(str(folder / "root"), {}, None, None, "", "wheel", app), said


def initialized(hook: install_hook.NativeDecoderHook, version: str = "standard") -> dict[str, Any]:
    """What the hook makes of the data of a build."""
    data = {"force_include": {}, "pure_python": True}
    hook.initialize(version, data)
    return data
