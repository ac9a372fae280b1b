"""What no socket can be had of, and what we tell the operator to do about it."""

from __future__ import annotations

import socket
import ssl
import sys
from typing import Any

from ..exceptions import DetachError

ASGI = "This ASGI server"
"""What to call the server in an environ that was made of an ASGI request."""

_GREEN = ("gevent", "eventlet")
# Servers that do not name themselves in the environ, by a module of theirs that the process then has.
_NAMELESS = {"bjoern": "bjoern", "hypercorn": "hypercorn", "granian": "Granian", "uvicorn": "uvicorn"}


def no_socket(environ: dict[str, Any]) -> DetachError:
    """Return the error for a request of a server that none of our rooms knows."""
    if _is_green(environ.get("wsgi.input")) or environ.get("SERVER_SOFTWARE", "").startswith("gevent/"):
        return _green_sockets()
    software = environ.get("SERVER_SOFTWARE") or next(
        (name for module, name in _NAMELESS.items() if module in sys.modules), "This WSGI server")
    return DetachError(
        f"{software} shows no socket to its applications; serve with gunicorn --worker-class gthread, or with another "
        "server that can: uWSGI, waitress, cheroot; while developing with flask run or manage.py runserver")


def check_socket(shown: object) -> socket.socket | int:
    """Return what a server shows as its socket, if a thread can take it over; a number is that of its descriptor.

    Raises:
        DetachError: no thread can.
    """
    if _is_green(shown):
        raise _green_sockets()
    if isinstance(shown, ssl.SSLSocket) and type(shown) is not ssl.SSLSocket:
        raise DetachError(
            f"the server's TLS socket is a {type(shown).__module__}.{type(shown).__qualname__}, which cannot be taken "
            "over; let a proxy such as nginx terminate TLS")
    if isinstance(shown, int) and shown >= 0:
        return shown
    if not isinstance(shown, socket.socket):
        raise DetachError(f"the server shows a {type(shown).__name__} instead of a socket")
    return shown


def _is_green(one: object) -> bool:
    return type(one).__module__.partition(".")[0] in _GREEN


def _green_sockets() -> DetachError:
    return DetachError(
        "gevent and eventlet workers show sockets that threads cannot serve; use gunicorn --worker-class gthread")
