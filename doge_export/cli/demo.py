"""`doge-export demo`: every step once, on a model that comes with the package, without the network."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from doge_export.cli.options import PATH
from doge_export.cli.render import size
from doge_export.cli.text import show
from doge_export.installing import need

if TYPE_CHECKING:
    from doge_export.checkpoint.architecture import CdmoeRouting

_PROMPT = "Once upon a time"
_MESSAGES = ("Hey how are you doing?", "What does a cat say?")
_MAX_LENGTH = 512
"""Most tokens of the export: beyond the trained length and keep_window_size, so that no check is left out."""


@click.command()
@click.option("--moe", is_flag=True, help="Take the bundled mixture of experts, doge-nano-moe, instead of doge-nano.")
@click.option("--keep", type=PATH, metavar="FOLDER", help="Export to FOLDER and leave it there.")
def command(moe: bool, keep: Path | None) -> None:
    """Run everything on a bundled model, offline.

    Exports it, compares it with PyTorch, looks into the folder, continues a text, and chats.
    """
    need("export", "torch", "onnx", "onnxscript", "safetensors", "transformers")
    from doge_export.package import verify
    from doge_export.pipeline.onnx import export
    from doge_export.runtime import load
    from doge_export.runtime.inspection import inspect_folder

    model = "doge-nano-moe" if moe else "doge-nano"
    with _output(keep) as folder:
        _step(1, f"export {model} for {_MAX_LENGTH} tokens, and compare it with PyTorch")
        routing: CdmoeRouting = "per-token" if moe else "reference"
        result = export(model, folder, offline=True, max_length=_MAX_LENGTH, cdmoe_routing=routing)
        assert result.verdict is not None  # validation is on by default, and raises if it fails
        click.echo(result.verdict.render_text())

        _step(2, "look into the folder")
        seen = inspect_folder(folder)
        for name, file in seen.manifest.files.items():
            click.echo(f"{name}  {size(file.bytes)}")
        for name, graph in seen.manifest.graphs.items():
            inputs = ", ".join(value["name"] for value in seen.ports[name]["inputs"][:4])
            click.echo(f"{name}: {graph.nodes} nodes, inputs {inputs}, …")

        _step(3, "compare every file with the manifest")
        click.echo(f"{len(verify(folder).files)} files, all as written")

        session = load(folder)
        _step(4, f"continue a text, with onnxruntime and without torch: {_PROMPT!r}")
        show(session.stream(_PROMPT, max_new_tokens=150, do_sample=False))

        _step(5, "chat")
        chat = session.chat()
        for message in _MESSAGES:
            click.echo(f"> {message}")
            show(chat.send(message, max_new_tokens=60, do_sample=False))

        del chat, session  # Windows does not delete a file that is open
        click.echo(f"\ndemo done: everything worked; {f'the folder is {folder}' if keep else 'nothing was kept'}")


@contextlib.contextmanager
def _output(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="doge-export-demo-") as folder:
        yield Path(folder) / "out"


def _step(number: int, title: str) -> None:
    click.echo(("\n" if number > 1 else "") + f"[{number}/5] {title}")
