"""Taking a lock that the calling thread may hold already, because the library was interrupted.

Python may run code of the application within any piece of the library: the collector runs ``__del__`` methods and
weakref callbacks, and the main thread runs signal handlers. If such code calls the library, it may want a lock that its
own thread holds. It would wait for ever, and every other thread with it. So it gets a RuntimeError instead.

Whether that is so is seen from the stack, and only when the lock is taken. A thread in which the library was
interrupted has frames of the library, frames of others above, and above those the frames of this call. Where the
library calls the application on purpose, it holds no lock.
"""

from __future__ import annotations

import sys
import threading
import time

_PACKAGE = __name__.partition(".")[0]
#: Modules that hold locks, or are called by those that do. They call nothing of an application, but for _ON_PURPOSE.
_HOLDERS = frozenset(f"{_PACKAGE}.{name}" for name in (
    "connection", "deadlines", "ending", "errands", "exchange", "history", "housekeeper", "hub", "inbox",
    "lifecycle", "outbox", "overflow", "presence", "receiving", "recovery", "registry", "sending", "shutdown",
    "speedups", "stats", "tls", "transport", "writing", "bus.local", "bus.mesh", "bus.publishing", "bus.redis",
    "wire.deflate", "wire.frames", "wire.messages", "wire.protocol"))
_ON_PURPOSE = frozenset({"serve", "report_error", "report_close"})
_PATIENCE = 0.1  # Seconds: it may well be that another thread holds the lock, for a moment.
_STEP = 0.001


def taking(lock: threading.Lock) -> threading.Lock:
    """Return a lock to be taken in a ``with`` statement.

    Raises:
        RuntimeError: the thread seems to hold it already.
    """
    if lock.locked() and _is_interrupted():
        end = time.monotonic() + _PATIENCE
        while lock.locked():
            if time.monotonic() > end:
                raise RuntimeError(
                    "wsthread was called by a __del__ method, a weakref callback or a signal handler that has "
                    "interrupted it in the same thread; let another thread make the call")
            time.sleep(_STEP)
    return lock


def _is_interrupted() -> bool:
    """Tell whether foreign code interrupted the library in the calling thread, and now calls it."""
    frame = sys._getframe(2)
    is_foreign = False
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(_PACKAGE):
            is_foreign = True
        elif is_foreign:
            return name in _HOLDERS and frame.f_code.co_name not in _ON_PURPOSE
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False
