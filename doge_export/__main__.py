"""Entry of the command line: from its first import on, signals end it without a traceback."""

from __future__ import annotations

import os
import signal

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _leave_at_once(number: int, frame: object) -> None:
    """End the process; nothing is written yet, or everything is."""
    if number == signal.SIGINT:
        os.write(2, b"\ndoge-export: interrupted\n")
    os._exit(128 + number)


def run() -> None:
    """Run the command line of this process."""
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP, a shell's & SIGINT
            signal.signal(number, _leave_at_once)

    from doge_export.cli import main

    main(prog_name="doge-export")


if __name__ == "__main__":
    run()
