"""Many WebSocket clients of a server with many workers, each worker with its share of them.

They are lean, for a million messages: one thread reads them all, and frames are taken apart when somebody asks.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from servers import Server

_HANDSHAKE = (
    "GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
_CLOSE, _PING = 8, 9
_ACCEPT = 0.03  # Seconds in which a worker that runs has accepted.
_clients: list[Client] = []  # That were not told to end by close_all() yet.


class Client:
    """A connection.

    Attributes:
        pid: of the worker that serves it; 0 when nobody has asked.
        code: of the server's Close, 1006 when there was none; None as long as it is open.
    """

    def __init__(self, port: int, path: str = "/ws") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.sendall(_HANDSHAKE.format(path).encode())
        _clients.append(self)
        self._data = bytearray()
        self._messages: list[str] = []
        self._is_open = False
        self.pid = 0
        self.code: int | None = None

    def finish_handshake(self) -> bool:
        """Wait for the answer; return whether it was 101."""
        while b"\r\n\r\n" not in self._data:
            data = self.socket.recv(1 << 16)
            if not data:
                return False
            self._data += data
        head, _, rest = bytes(self._data).partition(b"\r\n\r\n")
        self._data = bytearray(rest)
        self._is_open = head.startswith(b"HTTP/1.1 101")
        return self._is_open

    def send(self, text: str) -> None:
        """Send a message of at most 125 bytes, masked with zeros."""
        data = text.encode()
        assert len(data) < 126
        self.socket.sendall(struct.pack("!BBI", 0x81, 0x80 | len(data), 0) + data)

    def read(self) -> bool:
        """Take what has come; return whether there may be more to come."""
        try:
            data = self.socket.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        self._data += data
        if not data:
            self._take_apart()
            self.code = self.code or 1006
        return bool(data)

    @property
    def messages(self) -> list[str]:
        """All that have come, in their order, but for answers."""
        self._take_apart()
        return self._messages

    def ask(self, command: str) -> str:
        """Send a command and return its answer."""
        self.send(command)
        deadline = time.monotonic() + 20
        while True:
            for number, message in enumerate(self.messages):
                if message.startswith("="):
                    return self._messages.pop(number)[1:]
            _wait(self.socket, 1)
            if not self.read() or time.monotonic() > deadline:
                raise AssertionError(f"no answer on {command!r}")

    def ask_json(self, command: str) -> Any:
        """The same for an answer that is JSON."""
        return json.loads(self.ask(command))

    def _take_apart(self) -> None:
        data, start, end = self._data, 0, len(self._data)
        while end - start >= 2:
            opcode, length, head = data[start] & 15, data[start + 1], 2
            if length == 126:
                if end - start < 4:
                    break
                (length,), head = struct.unpack_from("!H", data, start + 2), 4
            if end - start < head + length:
                break
            payload = bytes(data[start + head:start + head + length])
            start += head + length
            if opcode == 1:
                self._messages.append(payload.decode())
            elif opcode == _CLOSE:
                self.code = int.from_bytes(payload[:2], "big")
                with suppress(OSError):
                    self.socket.sendall(struct.pack("!BBI", 0x88, 0x80 | len(payload), 0) + payload)
            elif opcode == _PING:
                with suppress(OSError):
                    self.socket.sendall(struct.pack("!BBI", 0x8A, 0x80 | len(payload), 0) + payload)
        del data[:start]

    def close(self) -> None:
        """Be gone."""
        self.socket.close()


def close_all() -> None:
    """Let all clients be gone, so that their server need not wait for them."""
    while _clients:
        _clients.pop().close()


def _wait(sock: socket.socket, timeout: float) -> None:
    """Wait until something has come."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        selector.select(timeout)


def spread(server: Server, each: int, workers: int, path: str = "/ws", without: Iterable[int] = ()) -> list[Client]:
    """Return clients, as many for each worker, however the kernel deals them out.

    Those for a worker that has its share are sent away; and such a worker is stopped while others connect.

    Args:
        server: the server.
        each: how many per worker.
        workers: how many workers there are.
        path: where they connect.
        without: processes that are no workers any more, and may still accept.
    """
    kept: list[Client] = []
    counts: Counter[int] = Counter(dict.fromkeys(without, each))
    others = len(counts)
    deadline = time.monotonic() + 60
    while len(kept) < each * workers:
        assert time.monotonic() < deadline, counts
        full = [pid for pid, count in counts.items() if count >= each]
        _signal(full, signal.SIGSTOP)
        batch = [Client(server.port, path) for _ in range(min(40, each * workers - len(kept)))]
        time.sleep(_ACCEPT)
        _signal(full, signal.SIGCONT)
        for client in batch:
            try:
                client.pid = int(client.ask("pid")) if client.finish_handshake() else 0
            except (AssertionError, OSError):  # Its worker has ended.
                client.pid = 0
            if client.pid and counts[client.pid] < each and (client.pid in counts or len(counts) < others + workers):
                counts[client.pid] += 1
                kept.append(client)
            else:
                client.close()
    return kept


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def pump(clients: Sequence[Client], condition: Callable[[], object], timeout: float = 20) -> None:
    """Read for all, until something is so."""
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for client in clients:
            if client.code is None:
                selector.register(client.socket, selectors.EVENT_READ, client)
        while not condition():
            assert time.monotonic() < deadline, Counter(len(client.messages) for client in clients)
            for key, _ in selector.select(0.02):
                if not key.data.read():
                    selector.unregister(key.fileobj)


def workers_of(server: Server) -> list[int]:
    """Return the processes that the server's log tells of."""
    return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", server.log())]
