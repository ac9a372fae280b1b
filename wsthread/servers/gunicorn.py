"""gunicorn, with its gthread and sync workers, from 20.1 on.

The socket is in the environ. The HTTP parser reads it through an ``Unreader``, whose buffer holds what came behind the
request. The handlers of signals are methods of the worker, and that is how we get at the worker: its ``alive`` turns
false as soon as it begins to stop, for whatever reason, and its ``cfg`` knows how long it may take.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import signal
from typing import Any

from .server import Server

# Seconds that we leave to the server of its own time for stopping: a worker may have said last that it lives 1 s
# before it began to stop, and connections that had to be cut need a moment too.
_MARGIN = 2.0


class Gunicorn(Server):
    """A worker of gunicorn that serves each request in a thread."""

    own_keys = ("gunicorn.",)
    # Without a length gunicorn 20 writes a last chunk, perhaps after close(). It then breaks on the dummy, before the
    # access line.
    dummy_headers = (("Content-Length", "0"),)

    def find_socket(self, environ: dict[str, Any]) -> object:
        """Return the socket that gunicorn has put into the environ."""
        return environ.get("gunicorn.socket")

    def take_unread(self, environ: dict[str, Any]) -> bytes:
        """Empty the buffer of the parser, which would take the bytes for the next request.

        They are out of reach of the request's body.
        """
        unreader = getattr(getattr(environ["wsgi.input"], "reader", None), "unreader", None)
        buffer = getattr(unreader, "buf", None)
        if not isinstance(buffer, io.BytesIO):
            return b""
        unread = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return unread

    def expect_no_more(self, environ: dict[str, Any]) -> None:
        """Say that the end of this request's body was not found, so that nobody knows where the next one begins.

        gunicorn has a place for that from 27 on. It then closes the connection, silently, where it else lets the
        selector watch it, and a thread look for a request in it. In older versions, and in what middleware puts around
        the body, there is no such attribute.
        """
        body = environ["wsgi.input"]
        if getattr(body, "failed", None) is False:
            with contextlib.suppress(AttributeError):  # Somebody else's, and read-only.
                body.failed = True

    def room(self) -> tuple[str, ...] | None:
        """Return the addresses that the worker listens on: no others have them, but a master that takes over."""
        sockets = getattr(_worker(), "sockets", None)
        if not isinstance(sockets, list):
            return None
        return tuple(sorted(_address(one) for one in sockets))

    def is_stopping(self) -> bool:
        """Ask the worker whether it is alive."""
        return not getattr(_worker(), "alive", True)

    def time_to_stop(self) -> float:
        """Return the shorter of ``graceful_timeout`` and ``timeout``, less a margin.

        While the worker waits for its requests to end, it does not tell the master that it lives. So the master kills
        it after ``timeout`` as well.
        """
        cfg = getattr(_worker(), "cfg", None)
        limits = [getattr(cfg, name, None) for name in ("graceful_timeout", "timeout")]
        return min(
            (max(limit - _MARGIN, limit / 4) for limit in limits if isinstance(limit, (int, float)) and limit),
            default=math.inf)


def _address(sock: Any) -> str:
    address = sock.getsockname()
    # Many an application listens on a path such as gunicorn.sock, each in a directory of its own.
    return os.path.abspath(address) if isinstance(address, str) else str(address)


def _worker() -> object:
    # An application may have put its own handler of a signal before gunicorn's, seldom of all of them.
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGABRT):
        worker: object = getattr(signal.getsignal(number), "__self__", None)
        if isinstance(getattr(worker, "alive", None), bool):
            return worker
    return None
