"""The click group behind `doge-export`: it imports commands when they are needed, and prints their errors."""

from __future__ import annotations

import importlib
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from doge_export import console
from doge_export.cli.signals import unwinding_signals
from doge_export.errors import DogeExportError, RunFailed
from doge_export.memory import is_out_of_memory, out_of_memory


class CommandFolder(click.Group):
    """A group whose command `x` is the object `command` of module `doge_export.cli.x`.

    A module is imported when its command is asked for, which keeps start-up and shell completion fast.

    Args:
        name: name of the group.
        commands: names of the commands, in the order of --help.
        options: keywords of `click.Group`.
    """

    def __init__(self, name: str, commands: Sequence[str], **options: Any) -> None:
        super().__init__(name, **options)
        self.folder = tuple(commands)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands of the folder in the order given, then those that were added to the group."""
        return [*self.folder, *(name for name in super().list_commands(ctx) if name not in self.folder)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command and add the logging options to it."""
        if cmd_name in self.folder and cmd_name not in self.commands:
            command: click.Command = importlib.import_module(f"doge_export.cli.{cmd_name}").command
            command.params += logging_options()
            self.add_command(command, cmd_name)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Users' mistakes and interruptions become one line; bugs keep their traceback."""
        ctx.with_resource(console.command_streams())
        ctx.color = True  # else click removes escape sequences from what a pipe gets
        try:
            with unwinding_signals(), warnings.catch_warnings():
                if not console.is_verbose():
                    warnings.simplefilter("ignore")
                return super().invoke(ctx)
        except DogeExportError as error:
            self._fail(ctx, error)
        except ModuleNotFoundError as error:
            mistake = _without_package(error)
            if mistake is None:
                raise
            self._fail(ctx, mistake)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._fail(ctx, RunFailed(out_of_memory(error)))
        except KeyboardInterrupt:
            click.echo("\ndoge-export: interrupted", err=True)
            ctx.exit(130)

    def _fail(self, ctx: click.Context, error: DogeExportError) -> NoReturn:
        if console.is_verbose():
            traceback.print_exc()
        click.echo(f"doge-export: error: {' '.join(str(error).split())}", err=True)
        ctx.exit(error.exit_code)


def _without_package(error: ModuleNotFoundError) -> DogeExportError | None:
    """Return the error for a package that is not installed; None if no requirement has the module, which is a bug."""
    from doge_export.cli.environment import install_command, requirement_for

    missing = requirement_for(error.name or "")
    if missing is None:
        return None
    return DogeExportError(
        f"the package {missing.name} is not installed, and this needs it: {install_command(missing.extra)}"
    )


def logging_options() -> list[click.Option]:
    """Return the options -q and -v, for the top level and for each command."""

    def on_top_level(ctx: click.Context) -> bool:
        return ctx.parent is None

    def quiet(ctx: click.Context, option: click.Parameter, value: bool) -> None:
        if value or on_top_level(ctx):  # a command without the flag keeps what the top level set
            console.set_quiet(value)

    def verbose(ctx: click.Context, option: click.Parameter, value: bool) -> None:
        if value or on_top_level(ctx):
            console.set_verbose(value)

    flag: dict[str, Any] = {"is_flag": True, "expose_value": False}
    return [
        click.Option(["-q", "--quiet"], callback=quiet, help="Print results and errors only.", **flag),
        click.Option(
            ["-v", "--verbose"],
            callback=verbose,
            help="Print details, warnings of libraries, and the traceback of an error.",
            **flag,
        ),
    ]
