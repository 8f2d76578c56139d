"""`doge-export classify`: labels of texts, with scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from doge_export import console
from doge_export.cli.options import folder_argument, json_option, session_options, texts_options
from doge_export.cli.render import columns, echo_json
from doge_export.cli.text import given_texts, one_line


@click.command()
@folder_argument
@texts_options
@click.option("--top-k", type=click.IntRange(1), default=1, show_default=True, help="Labels of each text, best first.")
@session_options
@json_option
def command(
    folder: Path,
    texts: tuple[str, ...],
    file: Path | None,
    precision: str | None,
    opening: dict[str, Any],
    as_json: bool,
    **options: Any,
) -> None:
    """Tell the class of each text.

    FOLDER was exported for text-classification. Without TEXT, every line of stdin is a text. Scores equal those of
    transformers' pipeline.
    """
    from doge_export.runtime.classification_session import ClassificationSession
    from doge_export.runtime.loading import load_as

    given = given_texts(texts, file)
    session = load_as(ClassificationSession, folder, purpose="classify", precision=precision, **opening)
    with console.progress("classifying", len(given)) as advance:
        results = session.ranked(given, on_progress=advance, **options)
    if as_json:
        echo_json({"results": [{"text": text, "labels": found} for text, found in zip(given, results, strict=True)]})
        return
    rows = [
        (scored["label"], f"{scored['score']:.4f}", one_line(text) if place == 0 else "")
        for text, found in zip(given, results, strict=True)
        for place, scored in enumerate(found)
    ]
    if rows:
        click.echo(columns(rows, indent=0))
