"""Write the page of the command line, docs/reference/commands.rst, from the commands: make docs-options."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple, cast

from wsthread.commands import COMMANDS, Command

PAGE = Path(__file__).parent / "reference" / "commands.rst"
HEAD = """\
.. Written by docs/commands.py from wsthread/commands. Change it there, and run: make docs-options

The command line
================

``wsthread COMMAND``, or ``python -m wsthread COMMAND``. Each command has ``--help``.

"""


class Argument(NamedTuple):
    """What a command takes.

    Attributes:
        names: as they are written on the command line; none for a value by its position.
        value: what the value is called; empty for none.
        help: what it means.
    """

    names: tuple[str, ...]
    value: str
    help: str

    def __str__(self) -> str:
        spellings = [f"{name} {self.value}".strip() for name in self.names or [""]]
        return ", ".join(f"``{one}``" for one in spellings)


class Recorder:
    """Takes the arguments of a command like a parser, and only notes them.

    Attributes:
        arguments: all of them, also those of groups.
        own: without those of groups.
        groups: those whose arguments exclude each other.
    """

    def __init__(self, arguments: list[Argument] | None = None) -> None:
        self.arguments = [] if arguments is None else arguments
        self.own: list[Argument] = []
        self.groups: list[Recorder] = []

    def add_argument(self, *names: str, help: str, action: str = "", metavar: str = "", **rest: Any) -> None:
        """Note an argument."""
        value = "" if action == "store_true" else metavar or names[-1].lstrip("-").upper()
        self.own.append(Argument(names if names[0].startswith("-") else (), value, help))
        self.arguments.append(self.own[-1])

    def add_mutually_exclusive_group(self) -> Recorder:
        """Return what notes the arguments of a group."""
        self.groups.append(Recorder(self.arguments))
        return self.groups[-1]


def page() -> str:
    """Return the text of the page."""
    return HEAD + "\n".join(section(name, command) for name, command in COMMANDS.items())


def section(name: str, command: Command) -> str:
    """Return what the page says about a command."""
    title = f"wsthread {name}"
    recorder = arguments_of(command)
    rows = [f"   * - {one}\n     - {text(one.help)}" for one in recorder.arguments]
    groups = [f"\n{' and '.join(map(str, group.own))} exclude each other.\n" for group in recorder.groups]
    return "\n".join([
        title, "-" * len(title), "", description(command), ".. list-table::", "   :header-rows: 1", "   :widths: 35 65",
        "", "   * - Argument\n     - What it means", *rows, *groups, ""])


def arguments_of(command: Command) -> Recorder:
    """Return what a command takes."""
    recorder = Recorder()
    command.add_arguments(cast(argparse.ArgumentParser, recorder))
    return recorder


def description(command: Command) -> str:
    """Return the docstring of a command's module, with its samples as blocks of code."""
    parts = []
    for part in inspect.cleandoc(command.__doc__ or "").split("\n\n"):
        is_sample = part.startswith("    ")
        parts.append(f".. code-block:: shell\n\n{part}\n" if is_sample else f"{text(part)}\n")
    return "\n".join(parts)


def text(plain: str) -> str:
    """Return a text with its options as literals."""
    return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"``\1``", plain.replace("*", r"\*"))


if __name__ == "__main__":
    PAGE.write_text(page())
