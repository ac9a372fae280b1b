"""Taking a lock that the calling thread may hold already, because the library was interrupted.

Python may run code of the application within any piece of the library: the collector runs ``__del__`` methods and
weakref callbacks, and the main thread runs signal handlers. If such code calls the library, it may want a lock that its
own thread holds. It would wait for ever, and every other thread with it. So it gets a RuntimeError instead.

The stack tells, and it is looked at only when somebody holds the lock. A thread in which the library was interrupted
has a frame of others that is directly younger than one of the library. Where the library calls the application on
purpose that is so too, but then it holds no lock; those places are known by their names. So whatever holds one of these
locks has no frames of others between its own: it gives no generator to a function of the standard library, say.
"""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType

_PACKAGE = __name__.partition(".")[0]
#: Modules and packages that are never called while one of these locks is held: all from the floor of the manager on,
#: and the client.
_OUTER = frozenset({
    "__init__", "__main__", "client", "client_socket", "commands", "configuration", "django", "django_handshake",
    "django_scope", "django_testing", "doctor", "flask", "flask_contexts", "flask_rules", "handlers", "manager",
    "prometheus", "pytest_plugin", "testing", "upgrader"})
#: Functions of the other modules that call the application, logging included. They hold none of these locks.
_ON_PURPOSE = frozenset({
    "addressing.fixed", "connection.send_json", "entries.named", "entries.to_json", "exchange.call_back", "hub.serve",
    "hub.report_error", "hub.report_close", "link.call_aside", "logs.tell", "options.compression_for", "snapshot._make",
    "thread.guard", "thread._handle_error", "wire.origins.is_allowed"})
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
    frame: FrameType | None = sys._getframe(2)
    is_foreign = False  # Whether the younger frame is.
    while frame is not None:
        package, _, module = frame.f_globals.get("__name__", "").partition(".")
        function = frame.f_code.co_name
        if package != _PACKAGE or function == "__del__":  # The library has one itself.
            is_foreign = True
        elif is_foreign and not _calls_application(module or "__init__", function):
            return True
        else:
            is_foreign = False
        frame = frame.f_back
    return False


def _calls_application(module: str, function: str) -> bool:
    return module.partition(".")[0] in _OUTER or f"{module}.{function}" in _ON_PURPOSE
