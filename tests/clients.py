"""A WebSocket client on a bare socket, for what real clients never send or never show.

Its frames are made by the ``websockets`` package, so that the tests do not compare wsthread with itself.
"""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
import struct
from email.message import Message
from types import TracebackType

from websockets.frames import Frame, Opcode

TEXT, BINARY, CLOSE, PING, PONG = Opcode.TEXT, Opcode.BINARY, Opcode.CLOSE, Opcode.PING, Opcode.PONG


def frame(opcode: Opcode, payload: bytes | str = b"", fin: bool = True) -> bytes:
    """Return a frame as a client sends it."""
    octets = payload.encode() if isinstance(payload, str) else payload
    return Frame(opcode, octets, fin).serialize(mask=True)


def handshake(path: str, port: int | str, *headers: str, key: str = "dGhlIHNhbXBsZSBub25jZQ==") -> bytes:
    """Return an opening handshake with more header lines; the default key is that of RFC 6455 1.3."""
    lines = [
        f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", *headers, "", ""]
    return "\r\n".join(lines).encode()


def ask(port: int, request: bytes, again: bool = True) -> tuple[int, Message, str]:
    """Send a request as it is and return the response: status, headers, body.

    After that, a connection that the server did not announce to close has to serve the next request, unless ``again``
    is false: there are servers that end such connections without a word.
    """
    with RawClient(port) as client:
        client.send(request)
        response = http.client.HTTPResponse(client.socket)
        response.begin()
        found = response.status, response.headers, response.read().decode()
        if again and not response.will_close:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv_head().startswith(b"HTTP/1.1 ")
    return found


def random_key() -> str:
    """Return a Sec-WebSocket-Key."""
    return base64.b64encode(os.urandom(16)).decode()


#: The ports of servers that speak TLS, and how to speak it with them.
SECURE_PORTS: dict[int, ssl.SSLContext] = {}


class RawClient:
    """A connection to a server on this machine, with TLS where the server wants it; nothing is sent by itself.

    An end of the connection without TLS' own is an error.

    Args:
        port: where the server listens.
        timeout: seconds for each read or write.
        receive_buffer: bytes the kernel may hold for us, None for its own choice.
        context: how to speak TLS; None for that of :data:`SECURE_PORTS`.
    """

    def __init__(
        self, port: int, timeout: float = 10, receive_buffer: int | None = None, context: ssl.SSLContext | None = None,
    ) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        if receive_buffer is not None:  # Counts only when set before connecting.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", port))
        if (secure := context or SECURE_PORTS.get(port)) is not None:
            self.socket = secure.wrap_socket(self.socket, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
        self.port = port
        self._unread = bytearray()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes in one go."""
        self.socket.sendall(data)

    def recv(self, size: int) -> bytes:
        """Return exactly so many bytes."""
        while len(self._unread) < size:
            self._fill()
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def recv_head(self) -> bytes:
        """Return a response up to its empty line."""
        while b"\r\n\r\n" not in self._unread:
            self._fill()
        return self.recv(self._unread.index(b"\r\n\r\n") + 4)

    def recv_response(self) -> tuple[int, str]:
        """Return the status and the body of a response with a Content-Length."""
        head = self.recv_head().decode().lower()
        length = next(line.partition(":")[2] for line in head.splitlines() if line.startswith("content-length:"))
        return int(head.split()[1]), self.recv(int(length)).decode()

    def recv_frame(self) -> tuple[int, bytes]:
        """Return the opcode and the payload of an unfragmented frame."""
        first, length = self.recv(2)
        assert first & 0xf0 == 0x80 and length < 128, "fragmented, extended or masked"
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(self.recv(size), "big")
        return Opcode(first & 0xf), self.recv(length)

    def recv_rest(self) -> bytes:
        """Return everything up to EOF."""
        while True:
            try:
                self._fill()
            except EOFError:
                return self.recv(len(self._unread))

    def silent(self, seconds: float = 0.1) -> bool:
        """Tell whether nothing at all comes for a while."""
        if self._unread:
            return False
        before = self.socket.gettimeout()
        self.socket.settimeout(seconds)
        try:
            self._fill()
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(before)
        return False

    def open(self, path: str = "/echo", *headers: str) -> RawClient:
        """Do the opening handshake."""
        self.send(handshake(path, self.port, *headers))
        head = self.recv_head()
        assert head.startswith(b"HTTP/1.1 101 "), head
        return self

    def reset(self) -> None:
        """End the connection with an RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def end_sending(self) -> None:
        """End our direction of the connection."""
        if isinstance(self.socket, ssl.SSLSocket):
            before = self.socket.gettimeout()
            self.socket.settimeout(0)
            try:
                self.socket.unwrap()
            except OSError:
                pass  # Ours has left, and that of the server is not waited for; or the server was faster.
            finally:
                self.socket.settimeout(before)
        socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def _fill(self) -> None:
        try:
            data = self.socket.recv(1 << 18)
        except ssl.SSLZeroReturnError:  # The end of both directions.
            data = b""
        if not data:
            raise EOFError("the server closed the connection")
        self._unread += data
