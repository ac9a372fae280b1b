"""uWSGI, on a socket that speaks HTTP, behind its own HTTP router, or behind a proxy that speaks uwsgi.

The server is written in C. A module that exists only within it tells the number of the socket's descriptor. What was
read ahead is out of reach. The interpreter is ended when a worker ends, whatever the signal, so ``atexit`` is called; a
worker that takes longer than its *mercy* is killed.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from ..exceptions import DetachError
from .server import Server

_LOOPS = ("gevent", "asyncio", "async", "greenlet", "tornado")
_HAS_THREADS = (2, 0, 28)  # From that version on threads are enabled by default.
_MERCY, _MARGIN = 60.0, 2.0  # Seconds: uWSGI's default, and what we leave it of that.


class Uwsgi(Server):
    """A worker of uWSGI, with processes and threads."""

    own_keys = ("uwsgi.", "x-wsgiorg.")

    def find_socket(self, environ: dict[str, Any]) -> object:
        """Return the descriptor of the request.

        Raises:
            DetachError: another loop than that of processes and threads runs, or TLS is spoken on that descriptor.
        """
        uwsgi: Any = sys.modules.get("uwsgi")
        if "uwsgi.version" not in environ or uwsgi is None:
            return None
        options = _options()
        loop = next((name for name in _LOOPS if name in options), None)
        if loop is not None:
            raise DetachError(
                f"uWSGI runs with --{loop}, and shows sockets that threads cannot serve; run it with processes and "
                "threads (--processes 2 --threads 4)")
        if getattr(uwsgi, "version_info", _HAS_THREADS)[:3] < _HAS_THREADS and not options.keys() & {
                "enable-threads", "threads"}:
            raise DetachError(
                "uWSGI before 2.0.28 lets no threads run while its worker waits for requests; add --enable-threads")
        if "https-socket" in options and environ.get("wsgi.url_scheme") == "https":
            raise DetachError(
                "uWSGI's --https-socket shows no socket that could be taken; let nginx terminate TLS, or use --https "
                "with --http-websockets, and --socket for the workers")
        return uwsgi.connection_fd()

    def processes(self) -> int:
        """Return uWSGI's number of workers."""
        count = getattr(sys.modules.get("uwsgi"), "numproc", None)
        return count if isinstance(count, int) else 1

    def time_to_stop(self) -> float:
        """Return the worker's mercy, less a margin."""
        if "uwsgi" not in sys.modules:
            return math.inf
        options = _options()
        text = next((options[name] for name in ("worker-reload-mercy", "reload-mercy") if name in options), b"")
        try:
            mercy = float(text) or _MERCY
        except (TypeError, ValueError):  # Said without a value, or twice.
            mercy = _MERCY
        return max(mercy - _MARGIN, mercy / 4)


def _options() -> dict[str, Any]:
    """Return uWSGI's options by name; their values are what the operator wrote, as bytes."""
    options = getattr(sys.modules["uwsgi"], "opt", None)
    if not isinstance(options, dict):
        return {}
    return {name.decode(errors="replace") if isinstance(name, bytes) else str(name): options[name] for name in options}
