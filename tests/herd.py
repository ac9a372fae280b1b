"""Many WebSocket clients in one thread, each with what it saw of its end.

The protocol is that of the ``websockets`` package: it answers Pings and Closes as clients do.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

_MOMENT = 0.01  # Seconds.


class Client:
    """A WebSocket connection.

    Attributes:
        socket: its socket, non-blocking.
        messages: the text messages that came.
        close_code: of the server's Close, 1006 when the connection ended without; None before.
        closed_at: when that was, in monotonic seconds.
        ended: whether the TCP connection is over.
        reset: whether it was over by a reset.
    """

    def __init__(self, url: str, timeout: float, receive_buffer: int | None) -> None:
        uri = parse_uri(url)
        self._protocol = ClientProtocol(uri)
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        if receive_buffer is not None:  # Counts only when set before connecting.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.messages: list[str] = []
        self.close_code: int | None = None
        self.closed_at = 0.0
        self.ended = False
        self.reset = False
        try:
            self.socket.connect((uri.host, uri.port))
            self._open()
        except BaseException:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    def _open(self) -> None:
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        while self._protocol.state.name == "CONNECTING":
            self.read()
            if self.ended or self._protocol.handshake_exc:
                raise ConnectionRefusedError(f"no 101: {self._protocol.handshake_exc or 'EOF'}")

    def send(self, text: str) -> None:
        """Send a text message."""
        self._protocol.send_text(text.encode())
        self._flush()

    def close(self) -> None:
        """Send a Close."""
        self._protocol.send_close(1000)
        self._flush()

    def read(self) -> None:
        """Take what is there."""
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, self.reset = b"", True
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
            self.ended = True
        self.messages += [
            bytes(event.data).decode() for event in self._protocol.events_received()
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT]
        close = self._protocol.close_rcvd
        if self.close_code is None and (close is not None or self.ended):
            self.close_code = 1006 if close is None else close.code
            self.closed_at = time.monotonic()
        self._flush()

    def _flush(self) -> None:
        try:
            for data in self._protocol.data_to_send():
                self.socket.sendall(data) if data else self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # The next read tells.


class Herd:
    """Clients that live as long as somebody waits for them.

    Args:
        url: where they connect.
        count: how many.
        timeout: seconds for each opening handshake.
        receive_buffer: bytes the kernel may hold for a client, None for its own choice.
    """

    def __init__(self, url: str, count: int, timeout: float = 10, receive_buffer: int | None = None) -> None:
        self._url = url
        self._timeout = timeout
        self._receive_buffer = receive_buffer
        self._selector = selectors.DefaultSelector()
        self.clients: list[Client] = []
        try:
            self.grow(count)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Herd:
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def grow(self, count: int) -> None:
        """Connect more clients."""
        for _ in range(count):
            client = Client(self._url, self._timeout, self._receive_buffer)
            self.clients.append(client)
            self._selector.register(client.socket, selectors.EVENT_READ, client)

    def stop(self) -> None:
        """Drop what is left of the connections."""
        for client in self.clients:
            client.socket.close()
        self._selector.close()

    def ignore(self, clients: Sequence[Client], ignored: bool = True) -> None:
        """Let clients read nothing, or read again."""
        for client in clients:
            if ignored:
                self._selector.unregister(client.socket)
            else:
                self._selector.register(client.socket, selectors.EVENT_READ, client)

    def wait(self, condition: Callable[[], object], timeout: float = 10) -> None:
        """Let the clients live until a callable returns something true."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "it did not become true in time"
            self.live()

    def live(self) -> None:
        """Let the clients read what comes in a moment."""
        for key, _ in self._selector.select(_MOMENT):
            client: Client = key.data
            client.read()
            if client.ended:
                self._selector.unregister(client.socket)
                client.socket.close()

    def ask(self, text: str) -> list[str]:
        """Send each client's message and return the next answer of each."""
        before = [len(client.messages) for client in self.clients]
        for client in self.clients:
            client.send(text)
        self.wait(lambda: all(len(client.messages) > count for client, count in zip(self.clients, before)))
        return [client.messages[count] for client, count in zip(self.clients, before)]

    def ended(self) -> bool:
        """Tell whether all connections are over."""
        return all(client.ended for client in self.clients)

    def codes(self) -> Counter[int | None]:
        """Return how many clients saw which close code."""
        return Counter(client.close_code for client in self.clients)
