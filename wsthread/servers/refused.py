"""What no socket can be had of, and what we tell the operator to do about it."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from ..exceptions import DetachError

ASGI = "This ASGI server"
"""What to call the server in an environ that was made of an ASGI request."""

_GREEN = ("gevent", "eventlet")
# How they begin whose users have no flask run: wsgiref, which is Django's runserver too, and ASGI servers.
_OF_DJANGO = ("WSGIServer/", ASGI)


def no_socket(environ: dict[str, Any]) -> DetachError:
    """Return the error for a request of a server that none of our rooms knows."""
    software = environ.get("SERVER_SOFTWARE") or "This WSGI server"
    or_else = "" if software.startswith(_OF_DJANGO) else ", or with flask run while developing"
    return DetachError(
        f"{software} shows no socket to its applications; serve with gunicorn --worker-class gthread{or_else}")


def check_socket(shown: object) -> socket.socket:
    """Return what a server shows as its socket, if a thread can take it over.

    Raises:
        DetachError: no thread can.
    """
    if type(shown).__module__.partition(".")[0] in _GREEN:
        raise DetachError(
            "gevent and eventlet workers show sockets that threads cannot serve; use gunicorn --worker-class gthread")
    if isinstance(shown, ssl.SSLSocket):
        raise DetachError("TLS sockets cannot be detached yet; let a proxy such as nginx terminate TLS")
    if not isinstance(shown, socket.socket):
        raise DetachError(f"the server shows a {type(shown).__name__} instead of a socket")
    return shown
