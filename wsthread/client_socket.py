"""The socket below a client: a stream, plain or of TLS, whose every wait ends at a deadline.

A deadline is a value of :func:`time.monotonic`; when it passes, a call raises TimeoutError. What has come by then is
still returned, but in the :data:`OVERTIME` only, so that a server which always sends more ends no deadline's meaning.

The socket never blocks, TLS included: a record of which only a part has come does not hold up who wants to write.
It belongs to one thread.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
import time
from typing import Any

OVERTIME = 1.0  # Seconds.
_RECV_SIZE = 1 << 16
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class ClientSocket:
    """A connected stream socket.

    Args:
        sock: plain or of TLS; it is ours from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(False)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        """Return its descriptor, -1 when it is closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it, any number of times."""
        self._socket.close()

    def recv(self, deadline: float) -> bytes:
        """Return the next bytes; none when the connection ended, in whatever way.

        Raises:
            TimeoutError: nothing came before the deadline, or there is no end behind it.
        """
        while time.monotonic() <= deadline + OVERTIME:
            try:
                return self._socket.recv(_RECV_SIZE)
            except _WOULD_BLOCK as blocked:
                # TLS may have to write before it can read.
                self._wait(select.POLLOUT if isinstance(blocked, ssl.SSLWantWriteError) else select.POLLIN, deadline)
            except OSError:
                return b""
        raise TimeoutError("the server sends without end")

    def exchange(self, data: memoryview, deadline: float) -> tuple[int, bytes]:
        """Send some bytes, or take some in the meantime: the server may read on only when its own are taken.

        Returns:
            How many bytes were sent, and those that came; one of them is nothing, or both are.

        Raises:
            TimeoutError: there was nothing to do before the deadline.
            OSError: the connection ended.
        """
        try:
            return self._socket.send(data), b""
        except _WOULD_BLOCK as blocked:
            # TLS that has to read before it can write would find the socket writable all the time.
            writable = 0 if isinstance(blocked, ssl.SSLWantReadError) else select.POLLOUT
        if self._wait(select.POLLIN | writable, deadline) == select.POLLOUT:
            return 0, b""
        try:
            received = self._socket.recv(_RECV_SIZE)
        except _WOULD_BLOCK:
            return 0, b""  # It was only a part of a TLS record.
        if not received:
            raise BrokenPipeError("the server has closed the connection")
        return 0, received

    def _wait(self, events: int, deadline: float) -> int:
        poll = select.poll()
        poll.register(self._socket, events)
        left = deadline - time.monotonic()
        if left <= 0 or not (found := poll.poll(math.ceil(left * 1000))):
            raise TimeoutError("the server sent nothing in time")
        return found[0][1]


def open_tcp(host: str, port: int, deadline: float) -> socket.socket:
    """Connect to the first address of a host that accepts it; the look-up of its name takes its own time.

    Raises:
        OSError: no address did, or the host has none.
        TimeoutError: it took longer.
    """
    error = OSError(f"{host} has no address")
    for family, kind, proto, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            sock = _open(family, kind, proto, address, deadline)
        except OSError as caught:
            error = caught
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # Each frame is a whole; none waits for more.
            return sock
    raise error


def open_unix(path: str, deadline: float) -> socket.socket:
    """Connect to a Unix socket.

    Raises:
        OSError: nobody listens there.
        TimeoutError: it took longer.
    """
    return _open(socket.AF_UNIX, socket.SOCK_STREAM, 0, path, deadline)


def start_tls(sock: socket.socket, context: ssl.SSLContext, host: str, deadline: float) -> socket.socket:
    """Agree on TLS with a server; return the socket that takes the place of this one.

    Raises:
        ssl.SSLError: TLS cannot be agreed on, or the certificate is not trusted.
        OSError: the connection ended.
        TimeoutError: it took longer.
    """
    sock.settimeout(_left(deadline))
    return context.wrap_socket(sock, server_hostname=host)


def _open(family: int, kind: int, proto: int, address: Any, deadline: float) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        sock.settimeout(_left(deadline))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)  # 0 would mean not to wait at all, which is another error.
