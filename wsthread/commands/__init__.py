"""The command line: ``wsthread COMMAND``, or ``python -m wsthread COMMAND``.

Each command is a module of its own with a ``SUMMARY``, ``add_arguments(parser)`` and ``run(arguments)``, which returns
the exit status. A new command is one more module and one more entry in :data:`COMMANDS`. Those that open
WebSockets stand on the synchronous client of :mod:`wsthread.client`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from . import bench, connect, doctor, publish
from .target import INTERRUPTED


class Command(Protocol):
    """What the module of a command has."""

    __doc__: str | None
    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what the command takes."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it and return the exit status."""


#: By the names that they have on the command line.
COMMANDS: dict[str, Command] = {"connect": connect, "doctor": doctor, "bench": bench, "publish": publish}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        argv: the arguments behind the program's name; None for those of this process.

    Raises:
        SystemExit: 2 for arguments that make no sense, 0 after ``--help``.
    """
    parser = argparse.ArgumentParser(prog="wsthread", description="WebSockets for threaded WSGI applications.")
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        added = parsers.add_parser(
            name, help=command.SUMMARY, description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_arguments(added)
    arguments = parser.parse_args(argv)
    try:
        return COMMANDS[arguments.command].run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ValueError as error:  # A URL, a header or a subprotocol that cannot be one.
        parser.error(str(error))
    except BrokenPipeError:  # Whoever read our output has gone, as head does; the interpreter need not flush to it.
        sys.stdout = None
        return INTERRUPTED
