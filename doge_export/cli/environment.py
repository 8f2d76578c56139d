"""What is installed of what the package metadata asks for."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from typing import Any

DISTRIBUTION = "doge-export"

_REQUIREMENT = re.compile(r"""([\w.-]+)(?:\[[^\]]*\])?\s*([^;]*?)\s*(?:;(.*)extra\s*==\s*["']([\w-]+)["'].*)?""")
_CONDITION = re.compile(r"""(sys_platform|platform_machine)\s*==\s*["'](\w+)["']""")


@dataclasses.dataclass(frozen=True)
class Requirement:
    """A package that the base install (`extra` None) or an extra asks for, and what is here of it."""

    name: str
    specifier: str
    extra: str | None
    installed: str | None

    @property
    def met(self) -> bool:
        """Whether it is installed in a version that will do."""
        return self.installed is not None and _allows(self.specifier, self.installed)


def requirements() -> list[Requirement]:
    """All that hold on this platform, by extra; none where this is not an installed package."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    matches = [match for match in map(_REQUIREMENT.fullmatch, lines) if match and match[1] != DISTRIBUTION]
    found = [
        Requirement(match[1], match[2], match[4], _installed(match[1])) for match in matches if _is_for_here(match[3])
    ]
    exporting = {requirement.name for requirement in found if requirement.extra == "export"}
    # The metadata repeats what an extra takes over from `export`.
    return [item for item in found if item.extra in (None, "export") or item.name not in exporting]


def environment() -> dict[str, Any]:
    """Facts in JSON values: python, platform, cpus, extras, providers, bundled, missing ({extra: command})."""
    from doge_export.assets import BUNDLED, bundled
    from doge_export.errors import DogeExportError
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
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "extras": extras,
        "providers": _providers(),
        "bundled": models,
        "missing": {extra: install_command(None if extra == "base" else extra) for extra in incomplete},
    }


def install_command(extra: str | None) -> str:
    """The pip command that gets an extra, or the base install."""
    return f'pip install "{DISTRIBUTION}[{extra}]"' if extra else f"pip install {DISTRIBUTION}"


def requirement_for(module: str) -> Requirement | None:
    """The requirement that brings a module of that name; None when none does."""
    name = module.partition(".")[0]
    return next((found for found in requirements() if found.name.replace("-", "_") == name), None)


def _is_for_here(marker: str | None) -> bool:
    """Whether a marker of our metadata holds on this machine: conditions joined by `and`."""
    here = {"sys_platform": sys.platform, "platform_machine": platform.machine()}
    return all(here[name] == value for name, value in _CONDITION.findall(marker or ""))


def _providers() -> list[str]:
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _installed(name: str) -> str | None:
    # onnxruntime-gpu brings the same module, in place of onnxruntime
    for distribution in (name, "onnxruntime-gpu") if name == "onnxruntime" else (name,):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return None


def _allows(specifier: str, version: str) -> bool:
    """Whether a release satisfies bounds such as `>=2.11,<2.14`, the only kinds that our metadata has."""
    for bound in filter(None, specifier.split(",")):
        match = re.fullmatch(r"\s*(>=|<)\s*([\d.]+)\s*", bound)
        if match is None:
            raise ValueError(f"requirement {bound!r} has a bound that doctor cannot judge")
        least = _release(version) >= _release(match[2])
        if least != (match[1] == ">="):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    """2.13.0+cpu is (2, 13): trailing zeros do not count, what follows the numbers neither."""
    numbers = [int(part) for part in re.match(r"\d+(\.\d+)*", version)[0].split(".")]  # type: ignore[index]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
