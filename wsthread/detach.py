"""Taking the socket away from the WSGI server, so that its thread goes back to serving HTTP.

The server keeps a valid socket object under its own file descriptor number, but behind it lies one end of a
socketpair: reading gives EOF at once, writing goes nowhere. Whatever the server still does with the connection
(its copy of the 101, draining, shutdown, close) reaches that dummy, and its counters and logs stay right. The
client's socket lives on under a new number that the server never sees.

Everything that knows a particular server is in this module: gunicorn (gthread and sync workers) and Werkzeug.

States of a socket: found (still the server's) -> detached (ours; the dummy is the server's) -> released (the
response is over, the dummy's other end is closed).
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import ssl
from typing import Any

from .exceptions import DetachError

_SOCKET_KEYS = ("gunicorn.socket", "werkzeug.socket")
_GREEN = ("gevent", "eventlet")
_HEADROOM = 64  # File descriptors that the HTTP server and the application keep for themselves.


def find_socket(environ: dict[str, Any]) -> socket.socket:
    """Return the socket behind a request, untouched.

    Raises:
        DetachError: there is none that could be taken; the message tells the operator what to change.
    """
    found = next((environ[key] for key in _SOCKET_KEYS if key in environ), None)
    if found is None:
        raise DetachError(
            f"{environ.get('SERVER_SOFTWARE') or 'This WSGI server'} shows no socket to its applications; serve "
            f"with gunicorn --worker-class gthread, or with flask run while developing")
    if type(found).__module__.partition(".")[0] in _GREEN:
        raise DetachError(
            "gevent and eventlet workers show sockets that threads cannot serve; use gunicorn --worker-class gthread")
    if isinstance(found, ssl.SSLSocket):
        raise DetachError("TLS sockets cannot be detached yet; let a proxy such as nginx terminate TLS")
    if not isinstance(found, socket.socket):
        raise DetachError(f"the server shows a {type(found).__name__} instead of a socket")
    return found


class Detached:
    """A socket that was the server's.

    Attributes:
        socket: the client's socket, ours alone now.
        unread: what the client sent behind the handshake and the server had read already.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        """Detach. Call it in the thread that serves the request, before the response starts.

        Raises:
            DetachError: see :func:`find_socket`; the request is as it was.
            OSError: few file descriptors are left; the request is as it was.
        """
        servers = find_socket(environ)
        dummy, self._drain = socket.socketpair()
        with dummy:
            self._drain.shutdown(socket.SHUT_WR)
            self._drain.setblocking(False)
            try:
                self.socket = servers.dup()
                _check_headroom(self.socket)
                os.dup2(dummy.fileno(), servers.fileno(), inheritable=False)
            except OSError:
                self._drain.close()
                raise
        self.unread = _take_unread(environ)

    def release(self) -> None:
        """End the server's side; call it when the server has written its response, as the WSGI ``close()`` is."""
        # A close with unread bytes would give the server a reset instead of an EOF.
        try:
            while self._drain.recv(65536):
                pass
        except OSError:
            pass
        self._drain.close()


def _check_headroom(sock: socket.socket) -> None:
    """Leave some file descriptors to the server: one that cannot accept any more may stop altogether.

    The kernel gives out the lowest free number, so the number tells how many are in use.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and sock.fileno() >= limit - min(_HEADROOM, limit // 4):
        number = sock.fileno()
        sock.close()
        raise OSError(errno.EMFILE, f"{number} of {limit} file descriptors are in use")


def _take_unread(environ: dict[str, Any]) -> bytes:
    body = environ["wsgi.input"]
    if "gunicorn.socket" not in environ:
        # The server reads through a buffered file whose source is the dummy now: read() ends at once.
        unread: bytes = body.read()
        return unread
    # gunicorn's parser holds them, out of reach of the request's body. They must not stay there: it would take
    # them for the next request.
    buffer = getattr(getattr(getattr(body, "reader", None), "unreader", None), "buf", None)
    if buffer is None:
        return b""
    unread = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return unread
