"""What the library tells the operator: the ``wsthread`` logger, and what it calls things.

A line never steers: what a handler or a filter of the application raises goes to ``sys.stderr``, as with errors of
handlers in :mod:`logging`. A handler may also take long, or never come back. So a thread that has more to do for a
connection lets another one tell, and waits for it :data:`PATIENCE` at most; the housekeeper's does not wait at all.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
import traceback
from typing import Any

from werkzeug.wrappers import Request

logger = logging.getLogger("wsthread")
_TOLD = "_wsthread_told"  # The attribute of an exception that is in the application's own log.

PATIENCE = 1.0  #: Seconds to wait for a line to be told.


def tell(level: int, message: str, *args: object, error: BaseException | None = None) -> None:
    """Log a line. Any thread may call it, without a lock; it raises nothing.

    Args:
        level: as in :mod:`logging`.
        message: as for ``logger.log``.
        *args: likewise.
        error: whose traceback to add; None for none.
    """
    try:
        logger.log(level, message, *args, exc_info=error, stacklevel=2)
    except BaseException:  # As broad as what the application's code may raise.
        if logging.raiseExceptions and sys.stderr is not None:
            traceback.print_exc()


def tell_aside(
    level: int, message: str, *args: object, error: BaseException | None = None, patience: float = 0.0,
) -> None:
    """Do what :func:`tell` does in a thread of its own, for a thread that has more to do.

    The line is told in the context of the caller (:mod:`contextvars`), which is Flask's, say.

    Args:
        level: as for :func:`tell`.
        message: likewise.
        *args: likewise.
        error: likewise.
        patience: seconds to wait until the line is out. Default 0.
    """
    told = contextvars.copy_context()
    thread = threading.Thread(
        target=told.run, args=(tell, level, message, *args), kwargs={"error": error}, name="wsthread-log", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # There is no thread to be had; the line is worth less than the caller's work.
        return
    if patience:
        thread.join(patience)


def path_of(environ: dict[str, Any]) -> str:
    """Return the path of a request as its client has sent it, with what the application is mounted below."""
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return path.encode("latin-1").decode(errors="replace")  # PEP 3333


def name_of(request: Request) -> str:
    """Return what log lines call the connection that came of a request."""
    return f"WebSocket {request.remote_addr or 'local'} {path_of(request.environ)!r}"


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
            logging.WARNING, "%s: error in %s, see the log of the application: %r", conn, where, error,
            patience=PATIENCE)
    else:
        tell_aside(logging.ERROR, "%s: error in %s", conn, where, error=error, patience=PATIENCE)
