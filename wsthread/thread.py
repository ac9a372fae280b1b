"""The thread of one connection: it waits for the 101, runs the application's code, and ends the connection.

Application code runs *guarded*: what it raises is logged, reported to ``on_error``, and closes the connection with
1011.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Protocol

from .connection import Connection, link_of
from .ending import State
from .exceptions import ConnectionClosed
from .logs import tell_aside, tell_error
from .wire.frames import CloseCode

#: Told of each exception of application code, as ``observer(conn, error)`` in its thread, before the connection closes.
observers: list[Callable[[Connection, BaseException], None]] = []
_RUNS = threading.Event()
_RUNS.set()


class Host(Protocol):
    """What the thread of a connection tells the manager. All of it is called in that thread."""

    def arrive(self, conn: Connection) -> bool:
        """The connection is OPEN; tell whether the application is to see it."""

    def serve(self, conn: Connection) -> None:
        """Run the application's code, as long as the connection is open."""

    def report_error(self, conn: Connection, error: BaseException) -> None:
        """The application's code raised an exception."""

    def depart(self, conn: Connection) -> None:
        """The connection is CLOSED."""

    def tell_end(self, conn: Connection) -> None:
        """The application knows that the connection is CLOSED."""

    def report_close(self, conn: Connection) -> None:
        """The last call for the application."""

    def dismiss(self, conn: Connection) -> None:
        """The thread ends, whether the connection ever was OPEN or not."""


def start(conn: Connection, host: Host) -> None:
    """Start the thread of a connection.

    Raises:
        RuntimeError: the system starts no more threads.
    """
    threading.Thread(target=_run, args=(conn, host), name=f"wsthread-{conn.id}", daemon=True).start()


def guard(conn: Connection, host: Host, work: Callable[[Connection], None]) -> None:
    """Run application code for a connection.

    What it raises ends here, whatever it is: a SystemExit, say, is not to end the broadcast of another thread.
    """
    try:
        work(conn)
    except BaseException as error:
        if is_failure(conn, error):
            _handle_error(conn, host, error)


def is_failure(conn: Connection, error: BaseException) -> bool:
    """Tell whether an exception of application code is an error, and not only how the code learned of the end."""
    # While it is open it was about another connection.
    return not isinstance(error, ConnectionClosed) or conn.state is State.OPEN


def _handle_error(conn: Connection, host: Host, error: BaseException) -> None:
    for observer in observers:
        observer(conn, error)
    tell_error(conn, "a callback", error)
    conn.close(CloseCode.INTERNAL_ERROR)
    try:
        host.report_error(conn, error)
    except BaseException as another:
        tell_error(conn, "on_error", another)


def _run(conn: Connection, host: Host) -> None:
    try:
        _share_event()
        _let_others_run_first()
        if link_of(conn).wait_opened():
            _live(conn, host)
    except BaseException as error:  # Such as a MemoryError.
        tell_aside(logging.ERROR, "%s: error in its thread", conn, error=error)
        link_of(conn).finish()  # It may have been before the connection was OPEN.
    finally:
        host.dismiss(conn)


def _live(conn: Connection, host: Host) -> None:
    has_arrived = False
    try:
        has_arrived = host.arrive(conn)
        if has_arrived:
            guard(conn, host, host.serve)
    finally:  # Whatever fails, the rest has its turn.
        try:
            link_of(conn).finish()
        finally:
            try:
                host.depart(conn)
            finally:
                if has_arrived:
                    guard(conn, host, host.report_close)
                host.tell_end(conn)


def _share_event() -> None:
    """Let all these threads have one Event between them that tells that they run: their own are 1 KiB each.

    Only who has started a thread waits for that, and it runs by now.
    """
    own = threading.current_thread()
    if isinstance(getattr(own, "_started", None), type(_RUNS)):
        setattr(own, "_started", _RUNS)


def _let_others_run_first() -> None:
    """Let the calling thread not interrupt others when something comes for it.

    Without this, Linux lets a thread that wakes up run in place of the one that holds the GIL, only to find that it has
    to wait for it: two switches for nothing, with hundreds of busy connections most of the time. It also keeps the HTTP
    server's threads ahead of those of the connections.
    """
    if hasattr(os, "SCHED_BATCH"):
        try:
            if os.sched_getscheduler(0) == os.SCHED_OTHER:  # Else somebody has other plans.
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        except OSError:
            pass  # A sandbox may forbid it.
