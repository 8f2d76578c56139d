"""`doge-export doctor`: the commands that work on this machine, and the installs that make the others work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from doge_export.cli.environment import environment
from doge_export.cli.options import json_option
from doge_export.cli.render import columns, echo_json

_NEEDED_FOR = {
    "base": "run an exported folder",
    "export": "export and validate",
    "gpu": "run on an NVIDIA GPU",
    "structured": "write JSON by a schema",
    "plugin": "compile the plugin of TensorRT engines",
    "rtx": "build and run engines of TensorRT for RTX",
    "trt": "build and run engines of TensorRT",
    "test": "run the tests of doge-export",
}


@click.command()
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Show what is installed and what is missing.

    Versions, execution providers, bundled models, and the commands that install the rest. Exit code 0 when exported
    folders can be run, 1 when not even that.
    """
    facts = environment()
    echo_json(facts) if as_json else click.echo(_text(facts))
    ctx.exit(0 if _base_works(facts) else 1)


def _base_works(facts: Mapping[str, Any]) -> bool:
    return "base" not in facts["missing"] and "CPUExecutionProvider" in facts["providers"]


def _text(facts: Mapping[str, Any]) -> str:
    rows = [
        ("doge-export", facts["doge_export"]),
        ("python", facts["python"]),
        ("platform", facts["platform"]),
        ("cpus", facts["cpus"]),
        ("providers", ", ".join(facts["providers"]) or "none: onnxruntime is missing"),
        *((f"bundled {name}", path or "missing") for name, path in facts["bundled"].items()),
        *_native_rows(facts["native"]),
    ]
    parts = [columns(rows, indent=0)]
    for extra, packages in facts["extras"].items():
        title = f"{extra}: {_NEEDED_FOR[extra]}" if extra in _NEEDED_FOR else extra
        states = columns((name, _state(package), package["required"]) for name, package in packages.items())
        parts.append(f"{title}\n{states}")
    for extra, install in facts["missing"].items():
        parts.append(f"to {_NEEDED_FOR.get(extra, 'use ' + extra)}: {install}")
    parts.append("ready to run exported folders" if _base_works(facts) else "not ready to run exported folders")
    return "\n\n".join(parts)


def _native_rows(native: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "missing" in native:
        return [("native decoder", native["missing"])]
    beyond = native["instruction_sets"][native["instruction_sets"].index(native["chosen"]) + 1 :]
    why = f"the best that this processor has; {', '.join(beyond)} it has not" if beyond else "the best there is"
    return [
        ("native decoder", f"{native['library']}, version {native['version']}"),
        ("", f"computes with {native['chosen']}: {why}"),
    ]


def _state(package: Mapping[str, Any]) -> str:
    if package["installed"] is None:
        return "missing"
    return package["installed"] if package["ok"] else f"{package['installed']} (unsuitable)"
