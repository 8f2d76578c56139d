"""`doge-export embed`: a vector for each text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from doge_export import console
from doge_export.cli.options import PATH, folder_argument, json_option, session_options, texts_options
from doge_export.cli.render import echo_json
from doge_export.cli.text import given_texts
from doge_export.errors import DogeExportError
from doge_export.package.atomic_file import written_file
from doge_export.paths import check_apart, check_file


@click.command()
@folder_argument
@texts_options
@click.option(
    "--pooling",
    type=click.Choice(["mean", "last", "none"]),
    default="mean",
    show_default=True,
    help="Mean of all tokens' vectors, the last token's, or (with --json) those of all tokens.",
)
@click.option("--normalize", is_flag=True, help="Scale every vector to length 1.")
@click.option("--output", type=PATH, metavar="FILE.npy", help="Write one float32 array [N, H].")
@session_options
@json_option
def command(
    folder: Path,
    texts: tuple[str, ...],
    file: Path | None,
    output: Path | None,
    precision: str | None,
    opening: dict[str, Any],
    as_json: bool,
    **options: Any,
) -> None:
    """Turn each text into a vector.

    FOLDER was exported for feature-extraction. Without TEXT, every line of stdin is a text. Prints one vector per line,
    its numbers separated by spaces.
    """
    import numpy as np

    from doge_export.runtime.feature_session import FeatureSession
    from doge_export.runtime.loading import load_as

    if options["pooling"] == "none" and not as_json:
        raise click.UsageError("--pooling none gives each text as many vectors as it has tokens; add --json.")
    if output is not None:
        _check_output(output, as_json)
        check_apart({"--output": output}, {"FOLDER": folder, "--file": file})
    given = given_texts(texts, file)
    session = load_as(FeatureSession, folder, purpose="embed", precision=precision, **opening)
    with console.progress("embedding", len(given)) as advance:
        vectors = session.embed(given, on_progress=advance, **options)
    if output is not None:
        with written_file("--output", output) as stream:
            # Into a real file numpy writes through a buffer of its own, and ignores that its end found no room.
            np.save(SimpleNamespace(write=stream.write), vectors)
        click.echo(f"{output}  float32 {list(np.shape(vectors))}")
    elif as_json:
        name = "vectors" if options["pooling"] == "none" else "vector"
        results = [{"text": text, name: found.tolist()} for text, found in zip(given, vectors, strict=True)]
        echo_json({"results": results}, indent=None)
    else:
        for vector in vectors:
            click.echo(" ".join(map(str, vector)))


def _check_output(output: Path, as_json: bool) -> None:
    """Refuse an output that could not be written, before anything runs."""
    if as_json:
        raise click.UsageError("--json prints the vectors that --output writes; drop one of them.")
    if output.suffix != ".npy":
        raise DogeExportError(f"--output {output} does not end in .npy, the format it is written in")
    check_file("--output", output)
