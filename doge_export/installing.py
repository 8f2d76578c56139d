"""What the package requires, what of it is installed, and the commands that install the rest.

doge-export is on no package index. The commands say what works with the copy that is running: a checkout and a wheel
file can be named to pip with an extra; else the requirements of the extra are, as the metadata lists them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

from doge_export.errors import DogeExportError

DISTRIBUTION = "doge-export"
MODULES = {
    "tensorrt": "tensorrt",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings",
    "cuda": "cuda-python",
    "google": "",
    "onnx_ir": "onnxscript",
}
"""Distributions of modules that are named otherwise; "" for none of ours."""


@dataclasses.dataclass(frozen=True)
class Requirement:
    """A package that the base install or an extra requires.

    Attributes:
        name: name of the distribution.
        specifier: versions that suffice, as in PEP 440; empty for any.
        extra: the extra that requires it; None for the base install.
        installed: version that is installed; None if it is not.
    """

    name: str
    specifier: str
    extra: str | None
    installed: str | None

    @property
    def met(self) -> bool:
        """True if it is installed in a version that suffices."""
        from packaging.specifiers import SpecifierSet

        return self.installed is not None and SpecifierSet(self.specifier).contains(self.installed, prereleases=True)


def requirements() -> list[Requirement]:
    """Return the requirements that apply to this platform; none if nothing tells them."""
    from packaging import requirements as pep508

    lines, extras = _declared()
    found = []
    for asked in map(pep508.Requirement, lines):
        applying = [extra for extra in ("", *extras) if asked.marker is None or asked.marker.evaluate({"extra": extra})]
        if applying and asked.name != DISTRIBUTION:
            found.append(Requirement(asked.name, str(asked.specifier), applying[0] or None, _installed(asked.name)))
    exporting = {requirement.name for requirement in found if requirement.extra == "export"}
    # An extra that includes `export` repeats its packages in the metadata; they are listed once, under `export`.
    return [item for item in found if item.extra in (None, "export") or item.name not in exporting]


def requirement_for(module: str) -> Requirement | None:
    """Return the requirement that installs a module of that name; None if none does."""
    name = module.partition(".")[0]
    name = MODULES.get(name, name)
    return next((found for found in requirements() if found.name.replace("-", "_") == name.replace("-", "_")), None)


def install_command(extra: str | None = None) -> str:
    """Return the pip command that installs an extra, or the base install for None; it needs no index to know us."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    suffix = f"[{extra}]" if extra else ""
    checkout = _checkout()
    if checkout is not None:
        return f'{_pip()} install -e "{checkout}{suffix}"'
    url = _direct_url()
    parts = urlsplit(str(url.get("url", "")))
    vcs, place = url.get("vcs_info"), Path(url2pathname(parts.path))
    if isinstance(vcs, dict):
        revision = f"@{vcs['commit_id']}" if vcs.get("commit_id") else ""
        return f'{_pip()} install "{DISTRIBUTION}{suffix} @ {vcs.get("vcs", "git")}+{url["url"]}{revision}"'
    if parts.scheme == "file" and place.exists():
        return f'{_pip()} install "{place}{suffix}"'
    names = [f'"{item.name}{item.specifier}"' for item in _needed(extra)]
    if names:
        return f"{_pip()} install {' '.join(names)}"
    return f'{_pip()} install ".{suffix}" in a clone of {DISTRIBUTION}'


def need(extra: str, *modules: str) -> None:
    """Refuse before any work what lacks modules of an extra.

    Args:
        extra: the extra that brings them.
        modules: top-level names.

    Raises:
        DogeExportError: a module is not installed; the message names all that are missing, and the command.
    """
    missing = [module for module in modules if not is_there(module)]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise DogeExportError(
            f"this needs the extra `{extra}`, and {', '.join(missing)} {are} not installed: {install_command(extra)}"
        )


def is_there(module: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def _checkout() -> Path | None:
    """Return the clone of the repository that this module runs from; None for an installed copy."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "plugins").is_dir() else None


def _declared() -> tuple[list[str], list[str]]:
    """Return the lines of the requirements and the names of the extras, from a checkout's project file or metadata."""
    import importlib.metadata
    import tomllib

    from packaging import requirements as pep508

    checkout = _checkout()
    if checkout is not None:
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras: dict[str, list[str]] = project["optional-dependencies"]
        lines = list(project["dependencies"])
        for extra, asked in extras.items():
            for requirement in map(pep508.Requirement, asked):
                marker = f"({requirement.marker}) and " if requirement.marker else ""
                lines.append(f"{requirement.name}{requirement.specifier}; {marker}extra == '{extra}'")
        return lines, list(extras)
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
        return lines, importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return [], []


def _needed(extra: str | None) -> list[Requirement]:
    """Return the requirements of an extra that are not met, or all of them if every one is."""
    included: dict[str | None, set[str | None]] = {
        "trt": {"export", "trt"},
        "rtx": {"export", "rtx"},
        "test": {"export", "rtx", "test"},
    }
    asked = [item for item in requirements() if item.extra in included.get(extra, {extra})]
    return [item for item in asked if not item.met] or asked


def _direct_url() -> dict[str, object]:
    """Return what pip noted of where the package came from (PEP 610); empty if that was an index, or nothing."""
    import importlib.metadata
    import json

    try:
        noted = json.loads(importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _pip() -> str:
    """Return how pip is called for this Python: by name only if the shell finds that one."""
    import shutil

    found = shutil.which("pip")
    here = Path(sys.executable)
    return "pip" if found and Path(found).parent == here.parent else f"{_quoted(str(here))} -m pip"


def _quoted(path: str) -> str:
    return f'"{path}"' if " " in path else path


def _installed(name: str) -> str | None:
    # onnxruntime-gpu has the same module and replaces onnxruntime.
    import contextlib
    import importlib.metadata

    for distribution in (name, "onnxruntime-gpu") if name == "onnxruntime" else (name,):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return None
