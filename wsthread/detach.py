"""Taking the socket away from the WSGI server, so that its thread goes back to serving HTTP.

The server keeps a valid socket object under its own file descriptor number, but behind it lies one end of a
socketpair: reading gives EOF at once, writing goes nowhere. Whatever the server still does with the connection
(its copy of the 101, draining, shutdown, close) reaches that dummy, and its counters and logs stay right. The
client's socket lives on under a new number that the server never sees.

Only the exchange is here. Where the socket is, and what the server has read of it, :mod:`wsthread.servers` knows.

With TLS it is the object that changes its owner, see :mod:`wsthread.tls`.

States of a socket: found (still the server's) -> detached (ours; the dummy is the server's) -> released (the
response is over, the dummy's other end is closed) or given up (closed, as the dummy's other end).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import ssl
from typing import Any

from . import servers
from .tls import TlsTransport
from .transport import Transport

_HEADROOM = 64  # File descriptors that the HTTP server and the application keep for themselves.


class Detached:
    """A socket that was the server's.

    Attributes:
        server: the server.
        transport: the connection to the client, ours alone now.
        unread: what the client sent behind the handshake and the server had read already.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        """Detach. Call it in the thread that serves the request, before the response starts.

        Raises:
            DetachError: see :func:`wsthread.servers.find`; the request is as it was.
            OSError: few file descriptors are left; the request is as it was.
        """
        self.server, shown = servers.find(environ)
        dummy, self._drain = socket.socketpair()
        with contextlib.ExitStack() as undo:
            undo.callback(self._drain.close)
            undo.callback(dummy.close)
            self._drain.shutdown(socket.SHUT_WR)
            self._drain.setblocking(False)
            if isinstance(shown, ssl.SSLSocket):
                _check_headroom(dummy.fileno())
                self.transport: Transport = TlsTransport(shown, dummy)
            else:
                self.transport = _exchange(shown, dummy)
                dummy.close()
            undo.callback(self.transport.close)
            self.unread = self.server.take_unread(environ)
            self.server.expect_no_more(environ)
            undo.pop_all()

    def release(self) -> None:
        """End the server's side; call it when the server has written its response, as the WSGI ``close()`` is."""
        # A close with unread bytes would give the server a reset instead of an EOF.
        try:
            while self._drain.recv(65536):
                pass
        except OSError:
            pass
        finally:
            self._drain.close()

    def give_up(self) -> None:
        """Close the connection to the client, and end the server's side: there will be no connection."""
        try:
            self.transport.close()
        finally:
            self.release()


def _exchange(shown: socket.socket | int, dummy: socket.socket) -> Transport:
    """Let the server's number lead to the dummy; return the client's socket under another one."""
    number = shown if isinstance(shown, int) else shown.fileno()
    ours = shown.dup() if isinstance(shown, socket.socket) else _copy(number)
    try:
        _check_headroom(ours.fileno())
        os.dup2(dummy.fileno(), number, inheritable=False)
        return Transport(ours)
    except BaseException:
        ours.close()
        raise


def _copy(number: int) -> socket.socket:
    copy = os.dup(number)
    try:
        return socket.socket(fileno=copy)
    except BaseException:  # It is no socket.
        os.close(copy)
        raise


def _check_headroom(number: int) -> None:
    """Leave some file descriptors to the server: one that cannot accept any more may stop altogether.

    The kernel gives out the lowest free number, so the number of a new one tells how many are in use.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and number >= limit - min(_HEADROOM, limit // 4):
        raise OSError(errno.EMFILE, f"{number} of {limit} file descriptors are in use")
