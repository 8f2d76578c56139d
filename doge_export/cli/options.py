"""Options shared by several commands."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from doge_export import console
from doge_export.checkpoint.architecture import CdmoeRouting, Generation, MoeVariant, Task
from doge_export.checkpoint.identify import RatioScope
from doge_export.package.manifest import Cache
from doge_export.paths import HUB_ID, check_path_text
from doge_export.precision import ADDABLE, RENAMED, Precision

if TYPE_CHECKING:
    from doge_export.runtime.session import Session

Function = TypeVar("Function", bound=Callable[..., Any])


class UnicodePath(click.Path):
    """A path that is Unicode text, so that it can be shown and written into a manifest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; raise DogeExportError if it is not Unicode text."""
        check_path_text(os.fsdecode(value))
        return super().convert(value, param, ctx)


class ExportedPath(UnicodePath):
    """An exported folder: a path, or a hub id, whose folder is fetched into the cache."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of the folder; raise DogeExportError if the hub does not give it."""
        path = super().convert(value, param, ctx)
        if not HUB_ID.fullmatch(str(path)):
            return path
        from doge_export.runtime.hub_folder import local_folder

        return local_folder(path)


PATH = UnicodePath(path_type=Path)
EXPORTED = ExportedPath(path_type=Path)


class PrecisionChoice(click.Choice[str]):
    """A choice of precisions that refuses an earlier spelling with the name to write instead."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the precision, or fail with the name to write instead."""
        if value in RENAMED:
            self.fail(f"{value!r} is called {RENAMED[value]}.", param, ctx)
        return super().convert(value, param, ctx)


PRECISION = PrecisionChoice(get_args(Precision))
"""Precision of a folder's graph or engine."""


def _renamed_option(name: str) -> Callable[[Function], Function]:
    """Return a hidden option that earlier versions had; it is refused with what to write instead."""

    def refuse(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is not None:
            new = RENAMED.get(value, value)
            advice = f": write --precision {new}" if new in ADDABLE else ""
            raise click.UsageError(f"{name} is called --precision{advice}.", ctx)

    return click.option(name, hidden=True, expose_value=False, callback=refuse, help="Earlier name of --precision.")


folder_argument = click.argument("folder", type=EXPORTED)
"""FOLDER, an exported folder or the hub id of one; the code that opens it checks that it is one."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
threads_option = click.option(
    "--threads", type=int, metavar="N", help="CPU threads. [default: as many as suit the model]"
)
force_option = click.option("--force", is_flag=True, help="Replace OUT when it is not empty.")
validate_option = click.option(
    "--validate/--no-validate", default=True, help="Compare with PyTorch afterwards. [default: validate]"
)


class Length(click.ParamType):
    """A number of tokens, or "unlimited"."""

    name = "length"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or "unlimited"."""
        return value if value == "unlimited" else click.INT.convert(value, param, ctx)


def cache_option(default: str | None = None) -> Callable[[Function], Function]:
    """Return the option --cache; with a `default` in words, None leaves the choice to the command."""
    return click.option(
        "--cache",
        type=click.Choice(get_args(Cache)),
        default="unbounded" if default is None else None,
        show_default=default is None,
        help="Keys that the cache holds: those of all tokens, or the keep_window_size best of each layer and head, "
        "which is exact, of constant size, and allows --max-length unlimited."
        + ("" if default is None else f" [default: {default}]"),
    )


def max_length_option(note: str = "", kind: Any = int) -> Callable[[Function], Function]:
    """Return the option --max-length; None leaves the length to the checkpoint.

    Args:
        note: goes into the help.
        kind: int, or `Length()` where "unlimited" is allowed too.
    """
    return click.option(
        "--max-length",
        type=kind,
        metavar="N",
        help=f"Tokens that prompt and answer may have together{note}. [default: max_position_embeddings]",
    )


def cdmoe_routing_option(help: str, default: CdmoeRouting | None = None) -> Callable[[Function], Function]:
    """Return the option --cdmoe-routing; without a default, None leaves the choice to the command."""
    return click.option(
        "--cdmoe-routing", type=click.Choice(get_args(CdmoeRouting)), default=default, show_default=True, help=help
    )


backend_option = click.option(
    "--backend",
    type=click.Choice(("native", "graph")),
    help="What computes on a CPU: the native decoder, or onnxruntime. [default: native where it is there]",
)
device_option = click.option(
    "--device",
    metavar="cpu|cuda[:N]",
    help="Where onnxruntime runs the graph: cuda for its fp16 graph on a GPU (extra `gpu`). [default: cpu]",
)
verify_option = click.option(
    "--verify", is_flag=True, help="Compare every file of FOLDER with its manifest before anything is opened."
)
host_code_option = click.option(
    "--allow-host-code",
    is_flag=True,
    help="Let an engine of FOLDER run code for the CPU that it contains (--version-compatible, --embed-plugin).",
)


window_option = click.option(
    "--window",
    type=int,
    metavar="N",
    help="Keys that a token sees of each layer and head, fewer than the model was trained with: an approximation, in "
    "less memory and time. [default: keep_window_size]",
)


def session_options(function: Function) -> Function:
    """Add the options for opening a folder: `precision`, and `opening`, the other keywords of `load`."""

    @functools.wraps(function)
    def collected(
        *args: Any,
        threads: int | None,
        backend: Any,
        device: str | None,
        verify: bool,
        allow_host_code: bool,
        **options: Any,
    ) -> Any:
        opening = {"threads": threads, "backend": backend, "device": device, "verify": verify}
        opening["allow_host_code"] = allow_host_code
        return function(*args, opening=opening, **options)

    return _all(
        click.option(
            "--precision",
            type=PRECISION,
            help="Graph of the folder to run. [default: fp32 if it is there]",
        ),
        threads_option,
        backend_option,
        device_option,
        verify_option,
        host_code_option,
    )(collected)  # type: ignore[return-value]


def source_options(function: Function) -> Function:
    """Add the options for finding a checkpoint: keywords of `open_checkpoint`, except trust_remote_code."""
    return _all(
        click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id. [default: main]"),
        click.option(
            "--token", metavar="TOKEN", help="Access token for a private hub id. [default: HF_TOKEN or the stored one]"
        ),
        click.option(
            "--cache-dir",
            type=PATH,
            metavar="DIR",
            help="Where downloads are kept. [default: that of huggingface_hub]",
        ),
        click.option(
            "--adapter",
            metavar="PATH|none",
            help="LoRA adapter to merge into the weights: a folder or hub id, or none. [default: the one beside them]",
        ),
        click.option("--offline", is_flag=True, help="Use what is on this machine; never the network."),
    )(function)


def assumption_options(function: Function) -> Function:
    """Add the options for what a checkpoint's files leave open: keywords of `Assumptions`."""
    return _all(
        click.option(
            "--task",
            type=click.Choice(get_args(Task)),
            help="Task to export for. [default: that of the checkpoint's head]",
        ),
        identity_options,
    )(function)


def identity_options(function: Function) -> Function:
    """Add the options of `assumption_options` other than --task: the variant of Doge that a checkpoint is."""
    return _all(
        click.option(
            "--generation",
            type=click.Choice(get_args(Generation)),
            help="Generation of Doge of an old checkpoint, if its tensors fit several (see the README).",
        ),
        click.option(
            "--cdmoe",
            type=click.Choice(get_args(MoeVariant)),
            help="Variant of an old mixture of experts, if its tensors fit several. [default: M7, or M4]",
        ),
        click.option(
            "--ratio-mask",
            type=click.Choice(get_args(RatioScope)),
            help="Keys that an old checkpoint's dynamic_mask_ratio counts: all, all once they exceed keep_window_size, "
            "or those in excess of it. [default: excess, or all without keep_window_size]",
        ),
    )(function)


def generation_options(function: Function) -> Function:
    """Add the settings of an answer: keywords of `Session.generate`; None leaves one to generation_config.json."""
    return _all(
        click.option(
            "--max-new-tokens",
            type=int,
            metavar="N",
            help="Most tokens of the answer. [default: up to the model's length]",
        ),
        click.option(
            "--sample/--greedy",
            "do_sample",
            default=None,
            help="Draw each token, or take the likeliest. [default: as generation_config.json says]",
        ),
        click.option("--temperature", type=float, metavar="T", help="Below 1 sharpens, above 1 flattens; 0 is greedy."),
        click.option("--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens; 0 is all."),
        click.option(
            "--top-p", type=float, metavar="P", help="Draw from the likeliest tokens that together have probability P."
        ),
        click.option(
            "--min-p", type=float, metavar="P", help="Leave out tokens less likely than P times the likeliest."
        ),
        click.option(
            "--repetition-penalty", type=float, metavar="R", help="Above 1 makes tokens seen before less likely."
        ),
        click.option("--seed", type=int, metavar="N", help="Makes drawing repeatable."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. May be given several times."),
        click.option(
            "--json-schema",
            type=PATH,
            metavar="FILE",
            callback=_read_schema,
            help="Let the answer be JSON that follows the schema in FILE. Needs the extra `structured`.",
        ),
    )(function)


def _read_schema(ctx: click.Context, param: click.Parameter, value: Path | None) -> str | None:
    from doge_export.paths import read_text

    return None if value is None else read_text(value)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse wrong values of `generation_options` before a model is loaded.

    Raises:
        DogeExportError: as `Session.generate` would.
    """
    from doge_export.runtime.generation_config import GenerationConfig

    GenerationConfig().override(
        **{name: value for name, value in settings.items() if name not in ("seed", "json_schema")}
    )
    if settings.get("json_schema") is not None:
        from doge_export.runtime.structured import grammar_of, schema_of

        grammar_of(schema_of(settings["json_schema"], None))


def log_notes(session: Session) -> None:
    """Tell what of a folder's generation_config.json is not supported."""
    for note in session.generation_config.notes:
        console.log(f"note: {note}")


def log_window(session: Session) -> None:
    """Tell that answers are approximate where a window is smaller than the trained one."""
    window = session.decoder.window
    if window is not None:
        trained = session.manifest.architecture["keep_window_size"]
        console.log(f"note: a token sees {window} keys, the model was trained with {trained}: answers are approximate")


def texts_options(function: Function) -> Function:
    """Add the options for reading many texts in batches: TEXT..., --file, --truncate, --batch-size."""
    return _all(
        click.argument("texts", metavar="[TEXT]...", nargs=-1),
        click.option("--file", type=PATH, metavar="FILE", help="Read a text from each line of FILE."),
        click.option("--truncate", is_flag=True, help="Cut texts that are too long, instead of refusing them."),
        click.option(
            "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Most texts in a run."
        ),
    )(function)


def _all(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Return a decorator that adds click options in the order in which --help lists them."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def quantization_options(function: Function) -> Function:
    """Add the options for graphs in fewer bits: their precisions, texts and limits."""
    return _all(
        click.option(
            "--precision",
            "precisions",
            type=PrecisionChoice(ADDABLE),
            multiple=True,
            help="Add a graph with weights of 8 or 4 bits; or for GPUs and browsers one with weights, activations and "
            "caches of 16 bits, or with such activations and weights of 4. May be given several times.",
        ),
        _renamed_option("--quantize"),
        _renamed_option("--dtype"),
        click.option(
            "--max-kl",
            type=float,
            metavar="NATS",
            help="Mean KL divergence from the fp32 graph that is allowed at every stretch of a text. "
            "[default: 0.01 for int8, beyond keep_window_size 0.03; 0.15 for int4 and q4f16, 0.001 for fp16]",
        ),
        click.option(
            "--calibration",
            type=PATH,
            metavar="FILE",
            help="Text to measure inputs and caches on. [default: the fp32 model writes it]",
        ),
        click.option(
            "--eval-text",
            type=PATH,
            metavar="FILE",
            help="Text to compare graphs on. [default: the fp32 model writes it]",
        ),
        click.option(
            "--float-cache",
            is_flag=True,
            help="Keep cached keys and values in float32, where int8 and int4 graphs for onnxruntime take 8 bits.",
        ),
        click.option(
            "--expand-weights",
            is_flag=True,
            help="Turn int8 and int4 weights of target portable into float32 when a graph is loaded: for "
            "onnxruntime-web, whose WebAssembly is 4 to 6 times slower in few bits.",
        ),
    )(function)
