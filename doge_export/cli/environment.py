"""Requirements in the package's metadata, and the versions of them that are installed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import platform
import sys
from typing import Any

from packaging import requirements as pep508
from packaging.specifiers import SpecifierSet

DISTRIBUTION = "doge-export"


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
        return self.installed is not None and SpecifierSet(self.specifier).contains(self.installed, prereleases=True)


def requirements() -> list[Requirement]:
    """Return the requirements that apply to this platform; none if this is not an installed package."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
        extras = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for asked in map(pep508.Requirement, lines):
        applying = [extra for extra in ("", *extras) if asked.marker is None or asked.marker.evaluate({"extra": extra})]
        if applying and asked.name != DISTRIBUTION:
            found.append(Requirement(asked.name, str(asked.specifier), applying[0] or None, _installed(asked.name)))
    exporting = {requirement.name for requirement in found if requirement.extra == "export"}
    # An extra that includes `export` repeats its packages in the metadata; they are listed once, under `export`.
    return [item for item in found if item.extra in (None, "export") or item.name not in exporting]


def environment() -> dict[str, Any]:
    """Return facts of this machine in JSON values.

    The keys are doge_export, python, executable, platform, cpus, extras, providers, bundled and missing, which maps
    each incomplete extra to the command that installs it.
    """
    from doge_export.assets import BUNDLED, bundled
    from doge_export.errors import DogeExportError
    from doge_export.processors import allowed_processors
    from doge_export.version import __version__

    extras: dict[str, dict[str, Any]] = {}
    for requirement in requirements():
        packages = extras.setdefault(requirement.extra or "base", {})
        packages[requirement.name] = {
            "required": requirement.specifier or "any",
            "installed": requirement.installed,
            "ok": requirement.met,
        }
    models: dict[str, str | None] = {}
    for name in BUNDLED:
        try:
            models[name] = str(bundled(name))
        except DogeExportError:
            models[name] = None
    incomplete = [extra for extra, packages in extras.items() if not all(facts["ok"] for facts in packages.values())]
    return {
        "doge_export": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": allowed_processors(),
        "extras": extras,
        "providers": _providers(),
        "bundled": models,
        "missing": {extra: install_command(None if extra == "base" else extra) for extra in incomplete},
    }


def install_command(extra: str | None) -> str:
    """Return the pip command that installs an extra, or the base install for None."""
    return f'pip install "{DISTRIBUTION}[{extra}]"' if extra else f"pip install {DISTRIBUTION}"


def requirement_for(module: str) -> Requirement | None:
    """Return the requirement that installs a module of that name; None if none does."""
    name = module.partition(".")[0]
    return next((found for found in requirements() if found.name.replace("-", "_") == name), None)


def _providers() -> list[str]:
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _installed(name: str) -> str | None:
    # onnxruntime-gpu has the same module and replaces onnxruntime.
    for distribution in (name, "onnxruntime-gpu") if name == "onnxruntime" else (name,):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return None
