"""`doge-export trt`: build of a TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from doge_export.cli.options import (
    PATH,
    Length,
    cache_option,
    cdmoe_routing_option,
    force_option,
    identity_options,
    json_option,
    max_length_option,
    source_options,
    validate_option,
)
from doge_export.cli.render import columns, echo_json, named_values, size, trial_lines, written_facts, written_lines
from doge_export.errors import DogeExportError
from doge_export.installing import install_command, is_there, need
from doge_export.paths import check_apart, check_file, check_folder
from doge_export.plugin.gpus import DEFAULT_GPU, capability, capability_of
from doge_export.plugin.tensorrt_versions import NATIVE_SINCE, NEWEST, dotted, release
from doge_export.trt.limits import CANDIDATES, MAX_PROMPT, MAX_TOP_K


@click.command()
@click.argument("model_or_folder", required=False)
@click.argument("out", type=PATH, required=False)
@click.option(
    "--builder",
    type=click.Choice(["tensorrt", "rtx"]),
    help="TensorRT, on and for the GPU of this machine, or TensorRT for RTX, anywhere. [default: the installed one; of "
    "both, tensorrt where there is a GPU]",
)
@click.option("--gpu", metavar="CARD", help=f"With rtx: the card that runs the engine. [default: {DEFAULT_GPU}]")
@click.option(
    "--compute-capability",
    "capabilities",
    metavar="NUMBER",
    multiple=True,
    help="With rtx: that of the GPUs, such as 89 (RTX 4090) or 120 (RTX 5090), several times for several.",
)
@click.option(
    "--fp16", "precision", flag_value="fp16", default="fp16", help="16-bit weights and activations. [default]"
)
@click.option("--bf16", "precision", flag_value="bf16", help="The same with the range of float32 and fewer digits.")
@click.option("--fp32", "precision", flag_value="fp32", help="32 bits everywhere: as exact as PyTorch, but for --tf32.")
@click.option(
    "--attention",
    type=click.Choice(["plugin", "native"]),
    default="plugin",
    show_default=True,
    help="By the plugin, or by TensorRT's own layers: those need no plugin and hold keep_window_size tokens at most.",
)
@click.option("--max-batch", type=click.IntRange(1), default=1, show_default=True, help="Rows at a time.")
@cache_option("unbounded, or that of the export")
@max_length_option('; the caches are as long, unless they are bounded, which allows "unlimited"', Length())
@click.option(
    "--max-prompt",
    type=click.IntRange(1),
    default=MAX_PROMPT,
    show_default=True,
    metavar="N",
    help="With bounded caches: tokens of a prompt that must be read whole, for scaled RoPE or reference routing.",
)
@identity_options
@cdmoe_routing_option(
    "How a mixture of experts chooses, see `doge-export onnx`. [default: reference, or that of the export]"
)
@click.option(
    "--candidates",
    type=click.IntRange(0, MAX_TOP_K),
    default=CANDIDATES,
    show_default=True,
    metavar="N",
    help="The best next tokens that a run hands out: greedy choice and top-k below N copy no logits to the host.",
)
@click.option(
    "--calibrate/--no-calibrate",
    default=True,
    help="In fp16, look on texts first how large values get: float16 ends at 65504. [default: calibrate]",
)
@click.option("--opt-level", type=click.IntRange(0, 5), default=3, show_default=True, help="5 builds long, runs fast.")
@click.option("--workspace-mib", type=click.IntRange(1), metavar="MIB", help="Scratch of layers. [default: all]")
@click.option("--timing-cache", type=PATH, metavar="FILE", help="Keep measurements there: the next build is short.")
@click.option(
    "--hw-compat",
    type=click.Choice(["none", "same", "ampere+"]),
    default="none",
    show_default=True,
    help="With tensorrt: other GPUs that may run it: none, those of the same compute capability, any from Ampere on.",
)
@click.option("--version-compatible", is_flag=True, help="Let later TensorRT of the same major version run it.")
@click.option("--embed-plugin", is_flag=True, help="Put the plugin into the engine; with --version-compatible.")
@click.option(
    "--tf32/--no-tf32",
    default=False,
    help="Let products of float32 take factors of 19 bits: --fp32 is faster then, and about as exact as --fp16. In 16 "
    "bits only the scores of keys and experts are such products. [default: no-tf32]",
)
@click.option("--plugin", type=PATH, metavar="FILE", help="The plugin. [default: DOGE_TRT_PLUGIN, or the one built]")
@click.option(
    "--tensorrt", metavar="VERSION", help=f"With --dry-run: the TensorRT to plan for. [default: {dotted(NEWEST)}]"
)
@click.option("--keep-onnx", is_flag=True, help="Leave the graph in OUT, for trtexec and polygraphy.")
@click.option(
    "--save-results",
    type=PATH,
    metavar="DIR",
    help="Write inputs and answers there, for polygraphy; with --keep-onnx those of onnxruntime, too.",
)
@source_options
@force_option
@validate_option
@click.option("--dry-run", is_flag=True, help="Check the graph and print the plan; needs neither TensorRT nor GPU.")
@click.option("--selftest", is_flag=True, help="Build and check engines of the bundled models here; write a report.")
@json_option
def command(
    model_or_folder: str | None, out: Path | None, dry_run: bool, selftest: bool, as_json: bool, **options: Any
) -> None:
    """Build a TensorRT engine.

    MODEL_OR_FOLDER is a checkpoint (a folder or a hub id) or an exported folder. TensorRT for RTX builds on any
    machine, for the RTX 4090 unless told otherwise; TensorRT builds for the GPU of this machine. The engine is
    compared with PyTorch where there is a GPU that runs it. OUT appears when all is done, or not at all, and is used
    like any exported folder.

    With --selftest, MODEL_OR_FOLDER is the report to write. [default: doge-export-trt-selftest.json]
    """
    if selftest:
        need("export", "torch", "onnx", "onnxscript", "safetensors", "transformers")
        if out is not None or dry_run:
            raise click.UsageError("--selftest takes the name of its report, --builder and --plugin only.")
        _selftest(Path(model_or_folder or "doge-export-trt-selftest.json"), options, as_json)
        return
    if model_or_folder is None or (out is None and not dry_run):
        raise click.UsageError("name a MODEL_OR_FOLDER and the folder OUT to write (or --selftest).")
    need("export", "torch", "onnx", "onnxscript", "safetensors")
    build = {name: options.pop(name) for name in ("force", "validate", "plugin", "keep_onnx", "save_results")}
    settings = {name: options.pop(name) for name in ("opt_level", "workspace_mib", "timing_cache")}
    settings |= {name: options.pop(name) for name in ("version_compatible", "embed_plugin")}
    settings |= {"hardware": options.pop("hw_compat"), "tf32": options.pop("tf32")}
    settings["compute_capabilities"] = _capabilities(options.pop("gpu"), options.pop("capabilities"))
    build["builder"] = options.pop("builder")
    planned_for = options.pop("tensorrt")
    _check_places(model_or_folder, out, build, settings)
    if dry_run:
        _dry_run(model_or_folder, planned_for, settings, build, as_json, options)
        return
    if planned_for:
        raise click.UsageError("--tensorrt is what --dry-run plans for; a build uses the TensorRT that is installed.")
    assert out is not None
    _build(model_or_folder, out, settings, build, as_json, options)


def _capabilities(gpu: str | None, named: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Return the compute capabilities that --gpu or --compute-capability name; none if neither is given."""
    if gpu is not None and named:
        raise click.UsageError("--gpu names a card, --compute-capability what cards have: give one of the two.")
    if gpu is not None:
        return (capability_of(gpu),)
    return tuple(dict.fromkeys(map(capability, named)))


def _check_places(model: str, out: Path | None, build: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse before the work, and in a dry run, what could not be built or written."""
    from doge_export.pipeline.folder import OutputFolder
    from doge_export.trt.builder import BuilderSettings

    plugin, cache, results = build["plugin"], settings["timing_cache"], build["save_results"]
    if plugin is not None and not plugin.is_file():
        raise DogeExportError(f"--plugin {plugin} is not a file; `doge-export plugin build` makes one")
    if out is not None:
        OutputFolder.checked(out, force=build["force"], reads=[model, plugin, cache])
    if results is not None:
        check_folder("--save-results", results)
        if not is_there("polygraphy"):
            extra = "rtx" if build["builder"] == "rtx" or not is_there("tensorrt") else "trt"
            raise DogeExportError(f"--save-results needs polygraphy: {install_command(extra)}")
    if cache is not None:
        check_file("--timing-cache", cache)
    BuilderSettings(**settings).check()
    check_apart(
        {"--timing-cache": cache, "--save-results": results}, {"MODEL_OR_FOLDER": model, "--plugin": plugin}, out
    )


def _build(
    model: str, out: Path, settings: dict[str, Any], build: dict[str, Any], as_json: bool, options: dict[str, Any]
) -> None:
    from doge_export.trt.builder import BuilderSettings
    from doge_export.trt.make import make_engine

    save_results = build.pop("save_results")
    build["must_run"] = save_results is not None
    result = make_engine(model, out, settings=BuilderSettings(**settings), **build, **options)
    saved = []
    if save_results is not None:
        from doge_export.trt.polygraphy_files import save

        saved = save(out, save_results)
    if as_json:
        echo_json(written_facts(out, result.manifest, engine=result.sidecar.to_dict(), results=saved))
        return
    for line in (*written_lines(out, result.manifest), *saved, *trial_lines(out, result.manifest)):
        click.echo(line)


def _dry_run(
    model: str,
    tensorrt: str | None,
    settings: dict[str, Any],
    build: dict[str, Any],
    as_json: bool,
    options: dict[str, Any],
) -> None:
    from doge_export.trt.builder import BuilderSettings
    from doge_export.trt.describe import plan_facts
    from doge_export.trt.dry_run import dry_run

    builder, version = build["builder"], None if tensorrt is None else _version(tensorrt)
    if version is not None and builder == "rtx":
        raise click.UsageError("--tensorrt is a version of TensorRT, and --builder rtx is another; drop one of them.")
    checked = BuilderSettings(**settings)
    planned, checked_by = dry_run(model, builder, version, plugin=build["plugin"], settings=checked, **options)
    facts = plan_facts(planned) | {"checked_by": checked_by}
    echo_json(facts) if as_json else click.echo(_plan_text(facts))
    click.get_current_context().exit(1 if planned.findings else 0)


def _plan_text(facts: dict[str, Any]) -> str:
    """Format a plan for people; the caches of the first layer stand for those of all layers."""

    def is_shown(name: str) -> bool:
        return not name.startswith(("past_key_values.", "present.")) or ".0." in name

    memory = {name: None if bytes_ is None else size(bytes_) for name, bytes_ in facts["memory"].items()}
    apart = ("findings", "trtexec", "profiles", "typing")
    shown = {name: value for name, value in facts.items() if name not in apart and value is not None}
    ports = {side: {n: port for n, port in facts[side].items() if is_shown(n)} for side in ("inputs", "outputs")}
    profiles = {
        profile: {n: " ".join(map(str, three)) for n, three in shapes.items() if is_shown(n)}
        for profile, shapes in facts["profiles"].items()
    }
    types = {kind: sum(counts.values()) for kind, counts in facts["typing"]["operators"].items()}
    largest = {kind: _magnitude(value["magnitude"]) for kind, value in facts["typing"]["largest"].items()}
    rows = named_values(
        shown | {"memory": memory} | ports | {"profiles": profiles, "nodes": types, "largest_values": largest}
    )
    findings = [f"finding: {finding}" for finding in facts["findings"]] or ["no findings"]
    command = [] if facts["trtexec"] is None else [facts["trtexec"], ""]
    return "\n".join([columns(rows, indent=0), "", *command, *findings])


def _magnitude(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _version(text: str) -> tuple[int, int]:
    """Return the major and the minor number of a version such as "10.15"."""
    try:
        numbers = release(text)
    except ValueError:
        numbers = ()
    if len(numbers) < 2:
        raise click.UsageError(f"--tensorrt is {text}; write it as {dotted(NATIVE_SINCE)} or {dotted(NEWEST)}.")
    return numbers[0], numbers[1]


def _selftest(report: Path, options: dict[str, Any], as_json: bool) -> None:
    from doge_export.trt.selftest import selftest

    result = selftest(report, builder=options["builder"], plugin=options["plugin"])
    if as_json:
        echo_json(result)
    else:
        for case in result["cases"]:
            click.echo(f"{'ok' if case['ok'] else 'FAILED'}  {case['name']}  {case['said']}")
        click.echo(f"{report}: send this file with a report of what failed")
    click.get_current_context().exit(0 if all(case["ok"] for case in result["cases"]) else 1)
