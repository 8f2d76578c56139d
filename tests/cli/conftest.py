import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from doge_export.cli import main


@pytest.fixture(autouse=True)
def _shared_references(shared_references):
    """Commands that validate are tested for what they say."""


@pytest.fixture
def run():
    """Runs a command line in this process. Bugs raise; `.stdout`, `.stderr` and `.exit_code` say the rest."""

    def invoke(*arguments: object, stdin: str | bytes | None = None):
        return CliRunner().invoke(
            main,
            [str(argument) for argument in arguments],
            input=stdin,
            catch_exceptions=False,
            prog_name="doge-export",
        )

    return invoke


@pytest.fixture
def start():
    """Starts a command line in a process of its own, in the environment of a user."""
    started = []

    def popen(*arguments: object, **options):
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen(
            [sys.executable, "-m", "doge_export", *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            **options,
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        process.kill()
        process.communicate()
