"""The click group behind `doge-export`: it imports commands when they are needed, and prints their errors."""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from doge_export import console
from doge_export.cli import encoding
from doge_export.cli.signals import unwinding_signals
from doge_export.errors import DogeExportError, RunFailed
from doge_export.interruption import dealt_with, pending
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

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command line, also where standard streams are closed."""
        console.open_closed_streams()
        encoding.accept_every_character()
        try:
            return super().main(*args, **extra)
        except OSError as error:  # of --help and --version, which print while the arguments are read
            mistake = _mistake(error)
            if mistake is None:
                raise
            console.error(f"doge-export: error: {mistake}")
            sys.exit(mistake.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Mistakes, interruptions and a lack of room become one line; bugs keep a traceback."""
        ctx.with_resource(console.command_streams())
        ctx.color = True  # else click removes escape sequences from what a pipe gets
        try:
            with unwinding_signals(), warnings.catch_warnings():
                if not console.is_verbose():
                    warnings.simplefilter("ignore")
                return super().invoke(ctx)
        except (click.NoSuchOption, click.MissingParameter) as error:
            _mention_dashes(error)
            raise
        except (click.exceptions.Exit, click.ClickException, BrokenPipeError):
            raise
        except BaseException as error:
            number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else pending()
            if number is not None:  # a library may have turned the interruption into another exception
                self._end_by_signal(ctx, number)
            mistake = _mistake(error)
            if mistake is None:
                raise
            self._fail(ctx, mistake)
        finally:
            dealt_with()
            encoding.tell_replaced()

    def _end_by_signal(self, ctx: click.Context, number: int) -> NoReturn:
        if number == signal.SIGINT:
            console.error("\ndoge-export: interrupted")
            # Python remembers a KeyboardInterrupt that passed through exec() of a text, as libraries do it, and at the
            # end of a module run by -m kills the process instead of exiting. Another exec() makes it forget.
            exec("")
        ctx.exit(128 + number)

    def _fail(self, ctx: click.Context, error: DogeExportError) -> NoReturn:
        if console.is_verbose():
            traceback.print_exc()
        message, cause = " ".join(str(error).split()), encoding.locale_cause()
        concerned = not message.isascii() or "surrogate" in message or "\\udc" in message
        if cause is not None and cause not in message and concerned:
            message = f"{message} ({cause})"
        console.error(f"doge-export: error: {message}")
        ctx.exit(error.exit_code)


def _mention_dashes(error: click.NoSuchOption | click.MissingParameter) -> None:
    """Say how a text that begins with a dash is given, where one was taken for an option.

    Raises:
        click.UsageError: that.
    """
    words, context = sys.argv[2:], error.ctx
    if context is None or "--" in words or not any(isinstance(item, click.Argument) for item in context.command.params):
        return
    if isinstance(error, click.NoSuchOption) and error.option_name.startswith("--") and error.possibilities:
        return  # a misspelt option
    if isinstance(error, click.NoSuchOption) or any(word.startswith("-") and word != "-" for word in words):
        raise click.UsageError(
            f"{error.format_message()} A text that begins with a dash goes behind --, after all options: "
            f'{context.command_path} ... -- "-5 degrees"',
            context,
        ) from error


def _mistake(error: BaseException) -> DogeExportError | None:
    """Return the error for an exception that is no bug; None for a bug."""
    if isinstance(error, DogeExportError):
        return error
    if isinstance(error, ModuleNotFoundError):
        return _without_package(error)
    if isinstance(error, OSError):
        from doge_export.package.disk import is_full, reason

        if is_full(error):
            console.forget_stdout()  # it may be what is full, and is flushed once more at the end
            place = "" if error.filename is None else f" to {error.filename}"
            return RunFailed(f"cannot write{place}: {reason(error)}; make room there")
    if isinstance(error, UnicodeError) and (cause := encoding.locale_cause()) is not None:
        return DogeExportError(f"{error}; {cause}")
    if is_out_of_memory(error):
        return RunFailed(out_of_memory(error))
    return None


def _without_package(error: ModuleNotFoundError) -> DogeExportError | None:
    """Return the error for a package that is not installed; None if no requirement has the module, which is a bug."""
    from doge_export.installing import install_command, requirement_for

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
