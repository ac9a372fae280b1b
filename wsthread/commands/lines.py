"""Lines of the input, from a descriptor that poll() can wait for; on a terminal a thread edits them.

A connection of the client belongs to one thread, which has to answer the server's Pings while somebody types. So that
thread waits for the socket and for a descriptor of lines at a time: the standard input itself, or the end of a pipe
into which another thread puts what was typed.
"""

from __future__ import annotations

import importlib
import os
import sys
import termios
import threading
from contextlib import suppress
from types import TracebackType

_READ_SIZE = 1 << 16


class Lines:
    """Lines from a descriptor; one thread.

    Args:
        descriptor: of a file, a pipe or a terminal.

    Attributes:
        ended: whether all of it was read.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self.ended = False

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._descriptor

    def read(self) -> list[str]:
        """Return the lines that have come, without their ends; call it when the descriptor is readable."""
        data = os.read(self._descriptor, _READ_SIZE)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self.ended and self._rest:
            lines, self._rest = [self._rest], b""
        return [line.removesuffix(b"\r").decode(errors="replace") for line in lines]


class Prompt:
    """Asks for lines on a terminal, in a thread of its own, and edits them. A context manager that ends it.

    Attributes:
        lines: what was typed.
    """

    TEXT = "> "

    def __init__(self) -> None:
        with suppress(ImportError):  # Python may have been built without it; then the terminal edits by itself.
            importlib.import_module("readline")  # input() uses it from then on.
        reading, self._writing = os.pipe()
        self.lines = Lines(reading)
        self._terminal = termios.tcgetattr(sys.stdin)

    def __enter__(self) -> Prompt:
        threading.Thread(target=self._ask, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None,
    ) -> None:
        """Give the terminal back as it was: the thread may be in the middle of a line."""
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._terminal)

    def _ask(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                os.write(self._writing, f"{input(self.TEXT)}\n".encode())
        os.close(self._writing)
