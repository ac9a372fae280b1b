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

from werkzeug.wrappers import Request

logger = logging.getLogger("wsthread")

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


def name_of(request: Request) -> str:
    """Return what log lines call the connection that came of a request."""
    return f"WebSocket {request.remote_addr or 'local'} {request.path!r}"
