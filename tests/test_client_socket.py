"""The socket below a client, without a client."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from wsthread.client_socket import OVERTIME, ClientSocket, open_tcp, open_unix


def soon() -> float:
    """Return a deadline that can be waited for."""
    return time.monotonic() + 0.05


@pytest.fixture
def pair() -> Iterator[tuple[ClientSocket, socket.socket]]:
    """A client's socket and the server's."""
    ours, theirs = socket.socketpair()
    stream = ClientSocket(ours)
    with theirs:
        yield stream, theirs
        stream.close()


@pytest.mark.parametrize("deadline", [lambda: time.monotonic(), soon], ids=["now", "soon"])
def test_recv(pair: tuple[ClientSocket, socket.socket], deadline: Callable[[], float]) -> None:
    """What has come is returned even when there is no time to wait, and so is the end."""
    stream, theirs = pair
    with pytest.raises(TimeoutError):
        stream.recv(deadline())
    theirs.sendall(b"hi")
    assert stream.recv(deadline()) == b"hi"
    with pytest.raises(TimeoutError):
        stream.recv(deadline())
    theirs.close()
    assert stream.recv(deadline()) == b""


def test_recv_after_the_overtime(pair: tuple[ClientSocket, socket.socket]) -> None:
    """Then even what has come is not looked at, so that there is an end."""
    stream, theirs = pair
    theirs.sendall(b"hi")
    with pytest.raises(TimeoutError, match="without end"):
        stream.recv(time.monotonic() - OVERTIME - 0.01)


def test_exchange(pair: tuple[ClientSocket, socket.socket]) -> None:
    """It sends while that is possible, and then takes what comes."""
    stream, theirs = pair
    theirs.sendall(b"hi")
    data, total = memoryview(bytes(1 << 16)), 0
    while (found := stream.exchange(data, soon()))[0]:
        assert found[1] == b""
        total += found[0]
    assert found == (0, b"hi")
    with pytest.raises(TimeoutError):
        stream.exchange(data, soon())
    while total:
        total -= len(theirs.recv(1 << 16))
    assert stream.exchange(data, soon())[0] > 0


def test_exchange_with_a_server_that_only_ended_its_side(pair: tuple[ClientSocket, socket.socket]) -> None:
    """Nobody is going to read then."""
    stream, theirs = pair
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        while stream.exchange(memoryview(bytes(1 << 16)), soon())[0]:
            pass


def test_closed(pair: tuple[ClientSocket, socket.socket]) -> None:
    """A closed socket has come to its end."""
    stream, _ = pair
    assert not stream.closed
    for _ in range(2):
        stream.close()
        assert stream.closed
    assert stream.recv(soon()) == b""
    with pytest.raises(OSError):
        stream.exchange(memoryview(b"x"), soon())


def test_addresses_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one that accepts is taken; of those that do not the last one's error is raised."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        found = [(*kind, deaf.getsockname()), (*kind, listener.getsockname())]
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, type: found)
        with open_tcp("a.example", 80, soon()) as sock:
            assert sock.getpeername() == listener.getsockname()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        del found[1]
        with pytest.raises(ConnectionRefusedError):
            open_tcp("a.example", 80, soon())
        del found[0]
        with pytest.raises(OSError, match="a.example has no address"):
            open_tcp("a.example", 80, soon())


def test_no_unix_socket() -> None:
    """The error is the one of the system."""
    with pytest.raises(FileNotFoundError):
        open_unix("/nowhere/socket", soon())
