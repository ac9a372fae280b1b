"""waitress, which is Pyramid's pserve too, from 2.0 on.

The environ has a method of the channel, and the channel has the socket. The server's main thread reads: what came in
one go with the handshake is in a parser that waits for the head of another request. After the exchange that thread sees
EOF and forgets the channel. The server tells nothing when it stops; ``atexit`` is early enough.
"""

from __future__ import annotations

import socket
from typing import Any

from .server import Server


class Waitress(Server):
    """waitress' server."""

    own_keys = ("waitress.",)
    takes_upgrade = False

    def find_socket(self, environ: dict[str, Any]) -> object:
        """Return the socket of the channel that the request came through."""
        found = getattr(_channel(environ), "socket", None)
        return found if isinstance(found, socket.socket) else None

    def take_unread(self, environ: dict[str, Any]) -> bytes:
        """Take the bytes from the parser that has got them, and drop the requests that it has made of them.

        These requests must not be served: a proxy believes that this connection speaks WebSocket now, and lets anything
        pass. Their bytes are gone, but for the empty line at the end. That is no frame, so it ends the connection.
        """
        channel: Any = _channel(environ)
        lock = getattr(channel, "requests_lock", None)
        if lock is None:
            return b""
        with lock:  # The main thread may be parsing them.
            requests = getattr(channel, "requests", None)
            if isinstance(requests, list) and len(requests) > 1:
                del requests[1:]  # The first is the handshake.
                channel.request = None
                return b"\r\n\r\n"
            head = getattr(getattr(channel, "request", None), "header_plus", None)
            if not isinstance(head, bytes):
                return b""
            channel.request = None
        return head


def _channel(environ: dict[str, Any]) -> object:
    return getattr(environ.get("waitress.client_disconnected"), "__self__", None)
