"""The command line. Each command is a file of this folder: it parses, calls one function, and prints.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 the run or the validation failed, 2 the request
cannot be met as it stands, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import click

from doge_export.cli.group import CommandFolder, logging_options
from doge_export.version import __version__

main = CommandFolder(
    "doge-export",
    commands=(
        "onnx",
        "quantize",
        "convert",
        "generate",
        "chat",
        "classify",
        "embed",
        "serve",
        "validate",
        "inspect",
        "verify",
        "eval",
        "bench",
        "plugin",
        "trt",
        "doctor",
        "demo",
    ),
    help="Doge small language models as validated ONNX folders.",
    epilog="Start with `doge-export demo`: it runs everything on a bundled model, offline.",
    params=[*logging_options()],
    no_args_is_help=True,
)
main = click.version_option(__version__, "--version", prog_name="doge-export")(main)
