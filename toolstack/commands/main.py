"""`xen-toolstack`: the command line.

Each command names the function that carries it out; only its module is imported, so that no command
pays for what another one needs.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from xen_save_helper.helper.standard_streams import hurry, lost, quietened, standard_streams
from xen_save_helper.toolstack.commands.common import (
    ENDING_SIGNALS,
    PROGRAM,
    CommandError,
    Interrupted,
    UsageError,
    complain,
)
from xen_save_helper.toolstack.commands.parser import make_parser
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.xl.outcome import ExitCode

PRINTING: Final = frozenset(
    {
        "completion:completion",
        "guests:show_list",
        "inspect:inspect",
        "faults:show_points",
        "postcopy:show_list",
        "postcopy:show_status",
        "timeline:timeline",
        "control:show_status",
    }
)
"""The commands that do nothing but print: they fail if they cannot."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, which says what was done."""
    # As in the helper's `main`.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with standard_streams():
        try:
            given = sys.argv[1:] if argv is None else argv
            arguments = make_parser(*given[:1]).parse_args(given)
        except SystemExit as told:
            if told.code or (error := lost(sys.stdout)) is None:
                raise
            print(f"{PROGRAM}: stdout: {message_of(error)}", file=sys.stderr)
            return ExitCode.FAILED
        handlers = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
        try:
            silent = (sys.stdout, sys.stderr) if arguments.quiet else ()
            with quietened(*silent):
                return _told(arguments, _run(arguments))
        finally:
            if argv is None:
                # All is said: a signal would only change the exit status.
                signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
            else:
                for number, handler in handlers.items():
                    signal.signal(number, handler)


def _run(arguments: argparse.Namespace) -> int:
    module, function = arguments.run.split(":")
    try:
        _check_quiet(arguments)
        command = getattr(
            importlib.import_module(f"xen_save_helper.toolstack.commands.{module}"), function
        )
        return int(command(arguments))
    except UsageError as error:
        _complain(arguments, str(error))
        return ExitCode.USAGE
    except CommandError as error:
        _complain(arguments, str(error))
        return error.code
    except (OSError, EOFError, ValueError) as error:
        _complain(arguments, message_of(error))
        return ExitCode.FAILED
    except (KeyboardInterrupt, Interrupted):
        hurry(sys.stdout)
        _complain(arguments, "interrupted")
        return ExitCode.FAILED


def _check_quiet(arguments: argparse.Namespace) -> None:
    """Raise UsageError if --quiet is given with what asks for the contrary."""
    for name in ("json", "verbose"):
        if arguments.quiet and getattr(arguments, name, False):
            raise UsageError(f"--quiet and --{name} exclude each other")


def _complain(arguments: argparse.Namespace, text: str) -> None:
    complain(arguments, text)
    if arguments.json:
        print(json.dumps({"error": " ".join(text.split())}))


def _told(arguments: argparse.Namespace, code: int) -> int:
    """Say on stderr if stdout could not be printed to. The code stays, unless the command's work
    was to print; a reader that has gone, or a signal, has read enough and is told nothing."""
    error = lost(sys.stdout)
    if error is None:
        return code
    if arguments.run in PRINTING:
        if error.errno not in {errno.EPIPE, errno.EINTR}:
            print(f"{PROGRAM}: stdout: {message_of(error)}", file=sys.stderr)
        return code or ExitCode.FAILED
    text = f"stdout: {message_of(error)}; exit code {int(code)} says what was done"
    print(f"{PROGRAM}: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
