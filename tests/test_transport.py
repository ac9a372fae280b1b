"""The socket of a connection."""

from __future__ import annotations

import os
import socket

import pytest

from wsthread.transport import Transport


def test_a_read_of_less_than_nothing() -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        peer.sendall(bytes(10_000))
        with pytest.raises(ValueError):
            Transport(ours).recv(-1)


def test_the_copy_of_a_fork_reaches_no_other_file() -> None:
    ours, peer = socket.socketpair()
    left, right = socket.socketpair()
    with peer, left, right:
        transport = Transport(ours)
        number = transport.fileno()
        transport.close_copy()
        os.dup2(left.fileno(), number)  # The child opens something.
        try:
            right.sendall(b"a")
            with pytest.raises(OSError):
                transport.send(b"b")
            with pytest.raises(OSError):
                transport.recv(1)
        finally:
            os.close(number)
