"""A server that says one thing, whatever it is asked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def answering(answer: bytes | Callable[[bytes], bytes], *, stay: bool = False) -> Iterator[int]:
    """Give the port of a server on 127.0.0.1, for the time of a with block.

    Args:
        answer: what each client gets when it has sent something; a callable makes it of what came first.
        stay: keep connections open afterwards.
    """
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                sock.settimeout(10)
                try:
                    asked = sock.recv(1 << 16)
                    sock.sendall(answer(asked) if callable(answer) else answer)
                except OSError:
                    pass
                kept.append(sock)
                if not stay:
                    sock.close()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for sock in kept:
                sock.close()


def page(status: str, body: str, *headers: str) -> bytes:
    """Return an answer of HTTP."""
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", body]).encode()
