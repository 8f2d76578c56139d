"""`doge-export convert`: an older checkpoint, rewritten in the layout that transformers loads today."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from doge_export.cli.options import PATH, assumption_options, force_option, json_option, source_options
from doge_export.cli.render import echo_json, size
from doge_export.installing import need


@click.command()
@click.argument("model")
@click.argument("out", type=PATH)
@assumption_options
@source_options
@force_option
@json_option
def command(model: str, out: Path, as_json: bool, **options: Any) -> None:
    """Rewrite an older checkpoint for transformers.

    MODEL is a folder or a hub id. OUT gets config.json, model.safetensors with today's names in the stored dtype, and
    the tokenizer's files. A checkpoint for which transformers would compute something else is refused, with the
    reasons.
    """
    need("export", "torch", "safetensors")
    from doge_export.checkpoint.identify import Assumptions
    from doge_export.pipeline.convert import convert

    assumed, rest = Assumptions.taken_from(options)
    result = convert(model, out, assumed=assumed, **rest)
    bytes_written = sum(file.stat().st_size for file in out.expanduser().iterdir())
    if as_json:
        echo_json({**dataclasses.asdict(result), "bytes": bytes_written})
        return
    click.echo(f"{out}  {size(bytes_written)}: {result.generation} as transformers' Doge, {result.dtype}")
