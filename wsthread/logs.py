"""What the library tells the operator: the ``wsthread`` logger, and what it calls things.

Logging never changes what the library does: what a handler or a filter of the application raises goes to
``sys.stderr``, as with errors of handlers in :mod:`logging`. A handler may also take long, or never come back. So a
thread that has more to do for a connection lets another thread tell the line, and waits :data:`PATIENCE` at most for
it; the housekeeper's thread does not wait at all. There is one such other thread per process, as long as there are
lines for it.
"""

from __future__ import annotations

import contextvars
import logging
import math
import queue
import sys
import threading
import time
import traceback
from typing import Any, NamedTuple

logger = logging.getLogger("wsthread")
_TOLD = "_wsthread_told"  # The attribute of an exception that is in the application's own log.

PATIENCE = 1.0  #: Seconds to wait for a line to be told.
_MOST_LINES = 1000  # That wait for a handler of the log. More are lost, and counted.


def tell(level: int, message: str, *args: object, error: BaseException | None = None) -> None:
    """Log a line. Any thread may call it, without a lock; it raises nothing.

    Args:
        level: as in :mod:`logging`.
        message: as for ``logger.log``.
        *args: likewise.
        error: whose traceback to add; None for none.
    """
    try:
        if logger.isEnabledFor(level):  # A handler may keep the line, which is to keep no connection alive.
            plain = [one if one is None or isinstance(one, (int, float, str)) else str(one) for one in args]
            logger.log(level, message, *plain, exc_info=error, stacklevel=2)
    except BaseException:  # As broad as what the application's code may raise.
        if logging.raiseExceptions and sys.stderr is not None:
            traceback.print_exc()


def tell_aside(
    level: int, message: str, *args: object, error: BaseException | None = None, patience: float = 0.0,
) -> None:
    """Do what :func:`tell` does in another thread, for a thread that has more to do.

    The line is told in the context of the caller (:mod:`contextvars`), which is Flask's, say.

    Args:
        level: as for :func:`tell`.
        message: likewise.
        *args: likewise.
        error: likewise.
        patience: seconds to wait until the line is out. Default 0.
    """
    if not logger.isEnabledFor(level):
        return
    try:
        line = _Line(contextvars.copy_context(), level, message, args, error, threading.Event())
        if _aside.add(line) and patience:  # A handler that is stuck costs each caller nothing more.
            line.is_out.wait(patience)
    except (RuntimeError, MemoryError):  # There is no thread to be had; the line is worth less than the caller's work.
        pass


class _Line(NamedTuple):
    context: contextvars.Context
    level: int
    message: str
    args: tuple[object, ...]
    error: BaseException | None
    is_out: threading.Event


class _Aside:
    """Lines that wait for the thread that tells them. No lock is held while anything else happens."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[_Line] = queue.SimpleQueue()
        self._runs = threading.Lock()  # Held as long as there is the thread, or somebody is about to start it.
        self._lost = 0  # About: who adds does not wait for others who do.
        self._since = math.inf  # When the line began that is being told.

    def add(self, line: _Line) -> bool:
        """Let a line be told; return whether that will be soon.

        Raises:
            RuntimeError: the system starts no more threads. The line waits for one.
        """
        if self._lines.qsize() >= _MOST_LINES:
            self._lost += 1
            return False
        self._lines.put(line)
        if self._runs.acquire(blocking=False):
            try:
                threading.Thread(target=self._run, name="wsthread-log", daemon=True).start()
            except BaseException:
                self._runs.release()
                raise
        return time.monotonic() - self._since < PATIENCE

    def _run(self) -> None:
        while True:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                self._runs.release()
                if self._lines.empty() or not self._runs.acquire(blocking=False):
                    return
                continue
            lost, self._lost = self._lost, 0
            if lost:
                tell(logging.WARNING, "%d lines were lost, a handler of the log took too long", lost)
            self._since = time.monotonic()
            line.context.run(tell, line.level, line.message, *line.args, error=line.error)
            self._since = math.inf
            line.is_out.set()


_aside = _Aside()


def reset_after_fork() -> None:
    """Forget the parent's thread, and the lines that it is going to tell."""
    global _aside
    _aside = _Aside()


def path_of(environ: dict[str, Any]) -> str:
    """Return the path of a request as its client has sent it, with what the application is mounted below."""
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return path.encode("latin-1").decode(errors="replace")  # PEP 3333


def name_of(environ: dict[str, Any]) -> str:
    """Return what log lines call the connection that came of a request."""
    return f"WebSocket {environ.get('REMOTE_ADDR') or 'local'} {path_of(environ)!r}"


def tell_refusal(environ: dict[str, Any], reason: object) -> None:
    """Log a handshake that is refused; see :func:`tell`."""
    tell(
        logging.WARNING, "refused handshake: %r %r from %r: %s",  # All of it comes from the peer, line breaks and all.
        environ.get("REQUEST_METHOD"), path_of(environ), environ.get("REMOTE_ADDR"), reason)


def note_told(error: Exception) -> None:
    """Note that the application's own log has an exception, with its traceback."""
    setattr(error, _TOLD, True)


def tell_error(conn: object, where: str, error: BaseException) -> None:
    """Log an exception of the application's code, from a thread that has more to do.

    Handlers of the root logger get what the application logs, too. So what it has logged is not told twice: then there
    is only a short line, and no ERROR, which somebody may be woken up by.

    Args:
        conn: the connection.
        where: such as ``"a callback"``.
        error: the exception.
    """
    if vars(error).pop(_TOLD, False):  # It may be raised again.
        tell_aside(
            logging.WARNING, "%s: error in %s, see the log of the application: %s", conn, where, repr(error),
            patience=PATIENCE)
    else:
        tell_aside(logging.ERROR, "%s: error in %s", conn, where, error=error, patience=PATIENCE)
