"""Facts of this machine: versions, extras, execution providers and bundled models."""

from __future__ import annotations

import importlib.util
import platform
import sys
from typing import Any

from doge_export.installing import install_command, requirements


def environment() -> dict[str, Any]:
    """Return facts of this machine in JSON values.

    The keys are doge_export, python, executable, platform, cpus, extras, providers, bundled, native, and missing, which
    maps each incomplete extra to the command that installs it.
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
        "native": _native(),
        "missing": {extra: install_command(None if extra == "base" else extra) for extra in incomplete},
    }


def _native() -> dict[str, Any]:
    """Return the native decoder's library, version and instruction sets, or why there is none.

    The keys are library, version, compiler, instruction_sets, usable and chosen; or missing alone.
    """
    from doge_export.errors import DogeExportError
    from doge_export.plugin.cpu_library import find_cpu_library

    try:
        found = find_cpu_library()
        from doge_export.runtime.native.interface import NativeLibrary

        library = NativeLibrary(found.path)
    except DogeExportError as error:
        return {"missing": str(error)}
    except ImportError as error:  # numpy is missing, which the extras tell
        return {"missing": f"the native decoder cannot be looked at: {error}"}
    usable = library.usable_instruction_sets
    return {
        "library": str(found.path),
        "version": found.facts["version"],
        "compiler": found.facts["compiler"],
        "instruction_sets": library.instruction_sets,
        "usable": usable,
        "chosen": usable[-1],
    }


def _providers() -> list[str]:
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    import onnxruntime

    return list(onnxruntime.get_available_providers())
