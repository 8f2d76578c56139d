"""`doge-export serve`: an exported folder behind an HTTP server."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from doge_export.cli.options import folder_argument, session_options, window_option


@click.command()
@folder_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 for a free one.")
@click.option(
    "--api-key",
    envvar="DOGE_EXPORT_API_KEY",
    metavar="KEY",
    help="Key that clients send. [or DOGE_EXPORT_API_KEY]",
)
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Web page that may ask. May be given several times.")
@click.option("--parallel", type=click.IntRange(1, 256), default=8, show_default=True, help="Answers written at once.")
@click.option("--max-queue", type=click.IntRange(0), default=64, show_default=True, help="Answers that may wait.")
@click.option(
    "--request-timeout",
    type=click.FloatRange(0.1, 86_400),
    default=600,
    show_default=True,
    help="Most seconds of a request.",
)
@window_option
@session_options
def command(
    folder: Path,
    host: str,
    port: int,
    api_key: str | None,
    cors: tuple[str, ...],
    parallel: int,
    max_queue: int,
    request_timeout: float,
    window: int | None,
    precision: str | None,
    opening: dict[str, Any],
) -> None:
    """Serve a model to clients of OpenAI's API.

    Chat, completions, embeddings and models are answered. The model's name is that of FOLDER. SIGTERM or Ctrl-C lets
    the server finish what it has begun.
    """
    from doge_export.installing import need

    need("serve", "starlette", "uvicorn")
    from doge_export.errors import DogeExportError
    from doge_export.package.manifest import read_manifest
    from doge_export.serve.app import App
    from doge_export.serve.limits import Limits
    from doge_export.serve.run import serve

    if api_key == "":
        raise DogeExportError("--api-key is empty: give a key, or leave it out for a server without one")

    if math.isnan(request_timeout):  # in no range, and refused by none
        raise DogeExportError("--request-timeout is nan: give a number of seconds")
    read_manifest(folder)
    app = App(folder.resolve().name, api_key=api_key, origins=cors, limits=Limits(request_seconds=request_timeout))
    opening |= {"precision": precision, "window": window}
    serve(folder, host, port, app, parallel=parallel, max_queue=max_queue, **opening)
