"""`doge-export plugin`: build the CUDA kernels, the TensorRT plugin and the native decoder; show what is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from doge_export.cli.group import logging_options
from doge_export.cli.options import PATH, json_option
from doge_export.cli.render import columns, echo_json
from doge_export.console import log
from doge_export.errors import DogeExportError
from doge_export.plugin.compile_wasm import WASM
from doge_export.plugin.cpu_targets import CPU_TARGETS


@click.group()
def command() -> None:
    """Build kernels, plugins, native decoder."""


@command.command()
@click.option("--cpu", is_flag=True, help="Build the native decoder for CPUs alone; a C++ compiler is enough.")
@click.option(
    "--target",
    type=click.Choice((*CPU_TARGETS, WASM)),
    help="With --cpu: the system to build for, by zig (pip install ziglang); wasm: two modules. [default: this one]",
)
@click.option("--output", type=PATH, metavar="DIR", help="Copy the libraries there. [default: leave them in the cache]")
@click.option("--force", is_flag=True, help="Replace DIR when it is not empty.")
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    metavar="NAME",
    help="A GPU to compile for, such as rtx4090. May be repeated. [default: rtx4090 and those of this machine]",
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="N",
    help="A GPU by its compute capability, such as 89 or 120. May be repeated.",
)
@click.option("--cuda-archs", metavar="LIST", help="GPUs as CMake names them, such as 80-real,90.")
@click.option("--no-cuda", is_flag=True, help="Leave the kernels out: the CPU reference alone.")
@click.option(
    "--headers", type=PATH, metavar="DIR", help="Folder of NVIDIA's NvInfer.h, in place of our own declarations."
)
@click.option("--cmake", metavar="FILE", help="The cmake to use. [default: found]")
@click.option("--cxx", metavar="FILE", help="The C++ compiler to use. [default: found]")
@click.option("--nvcc", metavar="FILE", help="The CUDA compiler to use. [default: found]")
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Compilers at a time. [default: one a processor]")
@json_option
@click.pass_context
def build(
    ctx: click.Context,
    cpu: bool,
    target: str | None,
    output: Path | None,
    gpus: tuple[str, ...],
    capabilities: tuple[str, ...],
    cuda_archs: str | None,
    no_cuda: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compile the libraries: the CPU reference, the CUDA kernels and the TensorRT plugin.

    A C++ compiler, cmake and nvcc are needed (the extra `plugin` brings the last two), and no headers. Without nvcc the
    kernels are left out, with a line on how to get it. The result is kept: the same sources, settings and compilers are
    not compiled again.

    With --cpu: the native decoder, which runs folders of target onnxruntime on a CPU faster than onnxruntime.
    """
    if cpu:
        _build_cpu(ctx, output, target, as_json)
        return
    if target is not None:
        raise DogeExportError("--target chooses the system of the native decoder: add --cpu, or leave it out")
    from doge_export.plugin.architectures import named
    from doge_export.plugin.build import build as build_plugin

    architectures: Sequence[str] | None = None
    if cuda_archs is not None:
        if gpus or capabilities:
            raise DogeExportError("--cuda-archs names GPUs already; drop it, or --gpu and --compute-capability")
        architectures = cuda_archs.replace(",", " ").replace(";", " ").split()
    elif gpus or capabilities:
        architectures = named(gpus, capabilities)
    result = build_plugin(output, architectures=architectures, cuda=not no_cuda, **options)
    for line in result.missing:
        log(line)
    if as_json:
        echo_json(result.to_dict())
        return
    for path in result.libraries.values():
        click.echo(path)
    click.echo(f"kernels for {', '.join(result.architectures)}" if result.architectures else "without kernels")


def _build_cpu(ctx: click.Context, output: Path | None, target: str | None, as_json: bool) -> None:
    from doge_export.plugin.cpu_library import build_cpu

    params = ctx.params
    others = {
        "--gpu": params["gpus"],
        "--compute-capability": params["capabilities"],
        "--cuda-archs": params["cuda_archs"],
        "--no-cuda": params["no_cuda"],
        "--headers": params["headers"],
        "--cmake": params["cmake"],
        "--nvcc": params["nvcc"],
    }
    for name in (name for name, value in others.items() if value):
        raise DogeExportError(f"{name} is of the kernels for GPUs, which --cpu leaves out; drop one of the two")
    result = build_cpu(output, target=target, cxx=params["cxx"], jobs=params["jobs"], force=params["force"])
    echo_json(result.to_dict()) if as_json else click.echo(result.path)


@command.command()
@json_option
def info(as_json: bool) -> None:
    """Show the tools a build would use, and what is built."""
    from doge_export.plugin.architectures import here
    from doge_export.plugin.build import cache_folder, cached_builds
    from doge_export.plugin.sources import plugin_sources
    from doge_export.plugin.toolchain import find_toolchain

    toolchain = find_toolchain()
    tools = [getattr(toolchain, field.name) for field in dataclasses.fields(toolchain)]
    facts = {
        "sources": str(plugin_sources()),
        "cache": str(cache_folder()),
        "gpus": list(here()),
        "tools": {
            tool.name: {"path": tool.path and str(tool.path), "version": tool.version, "missing": tool.missing}
            for tool in tools
        },
        "builds": cached_builds(),
    }
    echo_json(facts) if as_json else click.echo(_text(facts))


def _text(facts: dict[str, Any]) -> str:
    rows = [("sources", facts["sources"]), ("cache", facts["cache"])]
    rows += [("GPUs", ", ".join(facts["gpus"]) or "none")]
    rows += [
        (name, f"{tool['path']}  {tool['version']}" if tool["path"] else tool["missing"])
        for name, tool in facts["tools"].items()
    ]
    lines = [columns(rows, indent=0)]
    for built in facts["builds"]:
        names = ", ".join(built["architectures"]) or "no kernels"
        lines.append(f"built: {built['folder']}  {names}  {' '.join(built['libraries'])}")
    if not facts["builds"]:
        lines.append("nothing is built of these sources: doge-export plugin build")
    return "\n".join(lines)


for _command in command.commands.values():
    _command.params += logging_options()
