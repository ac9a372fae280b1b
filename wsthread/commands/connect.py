"""Open a WebSocket, send each line of the input, and print each message that comes.

On a terminal lines are edited as in a shell; Ctrl-D closes. In a script the input's end closes the connection, and
what the server sends until it has closed is still printed:

    echo hello | wsthread connect wss://chat.example/ws
    wsthread connect --listen --count 3 --timeout 60 ws://127.0.0.1:8000/ws

Messages go to the standard output, one a line, binary ones as base64 behind "binary: "; all else goes to the standard
error. With --json each line of the output is an object with "type": "open", "text", "binary" or "close".

Exit status: 0 when the input ended, --count messages came or the server closed with 1000; 1 when the server refused,
with its answer on the standard error; 2 for wrong arguments; 3 when there was no connection; 4 when the server closed
with another code than 1000; 5 when messages did not come, or leave, in time; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import base64
import json
import select
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from ..client import ClientConnection
from ..exceptions import ConnectionClosed, ProtocolError
from ..wire.frames import CloseCode
from . import target
from .lines import Lines, Prompt

SUMMARY = "open a WebSocket; lines go out, messages come in"
_CLEAR_LINE = "\r\x1b[K"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("url", metavar="URL", help="ws:// or wss://")
    target.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print each event as an object of JSON, one a line")
    parser.add_argument("--count", metavar="N", type=int, help="end after so many messages of the server")
    parser.add_argument("--listen", action="store_true", help="send nothing, read no input")


def run(arguments: argparse.Namespace) -> int:
    """Connect and pass on; return the exit status."""
    try:
        connection = target.opener(arguments)()
    except target.FAILURES as error:
        print(target.describe(error), file=sys.stderr)
        return target.status_of(error)
    with ExitStack() as stack:
        stack.callback(connection.terminate)
        has_input = not arguments.listen and sys.stdin is not None  # It is None when the shell has closed it.
        is_typed = has_input and sys.stdin.isatty()

        def begin_input() -> Lines | None:
            if is_typed:
                return stack.enter_context(Prompt()).lines
            return Lines(sys.stdin.fileno()) if has_input else None

        printer = Printer(arguments.json, Prompt.TEXT if is_typed else "")
        return _Session(connection, begin_input, printer, arguments).run()


class Printer:
    """Writes what happens.

    Args:
        as_json: whether as objects of JSON.
        prompt: what stands on the terminal below the messages; "" where nobody types.
    """

    def __init__(self, as_json: bool, prompt: str = "") -> None:
        self._as_json = as_json
        self._prompt = prompt

    def opened(self, connection: ClientConnection) -> None:
        """Tell that it is open."""
        self._object("open", subprotocol=connection.subprotocol, headers=connection.headers)
        if self._prompt:
            print("Open. Ctrl-D closes.", file=sys.stderr)

    def message(self, message: str | bytes) -> None:
        """Print a message of the server."""
        if isinstance(message, str):
            self._object("text", data=message)
            self._line(message)
        else:
            data = base64.b64encode(message).decode()
            self._object("binary", base64=data)
            self._line(f"binary: {data}")

    def closed(self, connection: ClientConnection) -> None:
        """Tell how it ended."""
        self._object("close", code=connection.close_code, reason=connection.close_reason)
        usual = connection.close_code == CloseCode.NORMAL_CLOSURE and not self._prompt
        if connection.close_code is not None and not usual:
            text = f"closed with {connection.close_code} {connection.close_reason}".rstrip()
            print(f"{_CLEAR_LINE if self._prompt else ''}{text}", file=sys.stderr)

    def _line(self, text: str) -> None:
        if self._as_json:
            return
        print(f"{_CLEAR_LINE}{text}\n{self._prompt}" if self._prompt else f"{text}\n", end="", flush=True)

    def _object(self, kind: str, **fields: Any) -> None:
        if self._as_json:
            print(json.dumps({"type": kind, **fields}), flush=True)


class _Session:
    """One connection and its input, in one thread.

    Args:
        connection: open.
        begin_input: begins to read the input and returns it; None for none.
        printer: where the messages go.
        arguments: ``count`` and ``timeout`` of the command.
    """

    def __init__(
        self, connection: ClientConnection, begin_input: Callable[[], Lines | None], printer: Printer,
        arguments: argparse.Namespace,
    ) -> None:
        self._connection = connection
        self._begin_input = begin_input
        self._lines: Lines | None = None
        self._printer = printer
        self._left: int | None = arguments.count
        self._timeout: float = arguments.timeout
        self._progress = time.monotonic()  # When something came or left last.

    def run(self) -> int:
        """Pass on until it ends; return the exit status."""
        try:
            self._printer.opened(self._connection)  # Before the prompt, whose thread writes to the terminal too.
            self._lines = self._begin_input()
            status = self._pass_on()
        except ConnectionClosed:
            status = target.DONE if self._connection.close_code == CloseCode.NORMAL_CLOSURE else target.CLOSED
        except ProtocolError as error:
            print(error.reason, file=sys.stderr)
            status = target.CLOSED
        except TimeoutError as error:
            print(error, file=sys.stderr)
            status = target.TOO_LATE
        except KeyboardInterrupt:
            status = target.INTERRUPTED
            with suppress(ProtocolError, TimeoutError):
                self._connection.close(timeout=1.0)
        self._printer.closed(self._connection)
        return status

    def _pass_on(self) -> int:
        while self._left is None or self._left > 0:
            if self._take_messages():
                continue
            if self._lines is not None and self._lines.ended and self._left is None:
                break
            self._wait()
        self._connection.close(timeout=self._timeout)
        while self._take_messages():  # What came before the server's Close.
            pass
        return target.DONE

    def _take_messages(self) -> bool:
        """Print a message, if one has come."""
        if self._left == 0:
            return False
        try:
            message = self._connection.receive(timeout=0)
        except TimeoutError:
            return False
        except ConnectionClosed:
            if self._connection.closed:  # By us.
                return False
            raise
        self._printer.message(message)
        self._progress = time.monotonic()
        if self._left is not None:
            self._left -= 1
        return True

    def _wait(self) -> None:
        """Wait for the server or the input, and send what comes from there."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        deadline = None
        if self._lines is not None and not self._lines.ended:
            poll.register(self._lines, select.POLLIN)
        elif self._left is not None:
            deadline = self._progress + self._timeout
        left = None if deadline is None else max(deadline - time.monotonic(), 0) * 1000
        ready = [descriptor for descriptor, _ in poll.poll(left)]
        if not ready:
            raise TimeoutError(f"{self._left} messages are missing, and none came for {self._timeout:g} s")
        if self._lines is not None and self._lines.fileno() in ready:
            for line in self._lines.read():
                self._connection.send(line, timeout=self._timeout)
                self._progress = time.monotonic()
