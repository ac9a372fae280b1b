"""The exchange of a socket for a dummy, with sockets and environs but without a server."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from peer import TIMEOUT

from wsthread.detach import Detached
from wsthread.exceptions import DetachError
from wsthread.servers.in_process import SOCKET_KEY, InProcess


class Ends(NamedTuple):
    """The two ends of a connection: the one that the server shows, and the client's."""

    servers: socket.socket
    client: socket.socket


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Open a connection."""
    servers, client = socket.socketpair()
    servers.settimeout(TIMEOUT)
    client.settimeout(TIMEOUT)
    with servers, client:
        yield Ends(servers, client)


def descriptors() -> set[str]:
    """Return the file descriptors of this process. Threads that other tests have left may close some at any time."""
    return set(os.listdir("/dev/fd"))


def assert_untouched(ends: Ends) -> None:
    """The server's socket is still the client's other end."""
    ends.servers.sendall(b"a refusal")
    assert ends.client.recv(99) == b"a refusal"


def test_exchange(ends: Ends) -> None:
    number = ends.servers.fileno()
    detached = Detached({SOCKET_KEY: ends.servers})
    with contextlib.closing(detached.transport):
        assert ends.servers.fileno() == number != detached.transport.fileno()
        assert ends.servers.recv(99) == b""
        ends.servers.sendall(b"the server's 101")
        detached.transport.send(b"our 101")
        assert ends.client.recv(99) == b"our 101"
        ends.client.sendall(b"a frame")
        assert detached.transport.recv(99) == b"a frame"
        detached.release()
    assert ends.client.recv(99) == b""


def test_server_ends_its_side(ends: Ends) -> None:
    """What it does to its socket, before and after the release, does nothing to ours."""
    detached = Detached({SOCKET_KEY: ends.servers})
    with contextlib.closing(detached.transport):
        ends.servers.sendall(b"the server's 101")
        ends.servers.shutdown(socket.SHUT_WR)
        detached.release()
        assert ends.servers.recv(99) == b""  # An EOF and no reset, although something was unread.
        ends.servers.close()
        ends.client.sendall(b"a frame")
        assert detached.transport.recv(99) == b"a frame"


def test_nothing_is_inherited(ends: Ends) -> None:
    detached = Detached({SOCKET_KEY: ends.servers})
    with contextlib.closing(detached.transport):
        assert not os.get_inheritable(detached.transport.fileno())
        assert not os.get_inheritable(ends.servers.fileno())
        detached.release()


def test_nothing_is_left(ends: Ends) -> None:
    before = descriptors()
    detached = Detached({SOCKET_KEY: ends.servers})
    detached.transport.close()
    detached.release()
    detached.release()
    assert descriptors() <= before


def test_given_up(ends: Ends) -> None:
    before = descriptors()
    detached = Detached({SOCKET_KEY: ends.servers})
    detached.give_up()
    detached.give_up()
    assert descriptors() <= before
    assert ends.client.recv(99) == b""
    assert ends.servers.recv(99) == b""


def test_server_is_asked_after_the_exchange(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what it has read already: then reading ends by itself."""
    monkeypatch.setattr(InProcess, "take_unread", lambda self, environ: b"read before" + environ[SOCKET_KEY].recv(99))
    ends.client.sendall(b"not read yet")
    detached = Detached({SOCKET_KEY: ends.servers})
    with contextlib.closing(detached.transport):
        assert isinstance(detached.server, InProcess)
        assert detached.unread == b"read before"
        assert detached.transport.recv(99) == b"not read yet"
        detached.release()


def test_server_is_told_that_there_is_no_more(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the question for what it has read."""
    calls: list[str] = []

    def take_unread(self: InProcess, environ: object) -> bytes:
        calls.append("unread")
        return b""

    monkeypatch.setattr(InProcess, "take_unread", take_unread)
    monkeypatch.setattr(InProcess, "expect_no_more", lambda self, environ: calls.append("no more"))
    detached = Detached({SOCKET_KEY: ends.servers})
    detached.give_up()
    assert calls == ["unread", "no more"]


def test_nothing_unread(ends: Ends) -> None:
    detached = Detached({SOCKET_KEY: ends.servers})
    with contextlib.closing(detached.transport):
        assert detached.unread == b""
        detached.release()


def test_no_socket(ends: Ends) -> None:
    before = descriptors()
    with pytest.raises(DetachError, match="shows no socket"):
        Detached({"a.socket": ends.servers})
    assert descriptors() <= before
    assert_untouched(ends)


@pytest.mark.parametrize(("limit", "fits"), [
    (lambda number: number + 65, True),
    (lambda number: number + 64, False),
    (lambda number: number, False),
    (lambda number: resource.RLIM_INFINITY, True),
], ids=["just enough", "one too few", "none", "no limit"])
def test_headroom(ends: Ends, monkeypatch: pytest.MonkeyPatch, limit: Callable[[int], int], fits: bool) -> None:
    """64 file descriptors are kept free, and what is refused leaves all as it was."""
    spare = [os.dup(0) for _ in range(300)]  # A quarter of a smaller limit would be less than 64.
    try:
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            number = third.fileno()  # The dummy's two ends take two, the client's socket the third.
            assert first.fileno() < second.fileno() < number
        before = descriptors()
        monkeypatch.setattr(resource, "getrlimit", lambda which: (limit(number), resource.RLIM_INFINITY))
        if fits:
            detached = Detached({SOCKET_KEY: ends.servers})
            detached.transport.close()
            detached.release()
        else:
            with pytest.raises(OSError, match=f"{number} of {limit(number)} file descriptors are in use") as caught:
                Detached({SOCKET_KEY: ends.servers})
            assert caught.value.errno == errno.EMFILE
            assert_untouched(ends)
        assert descriptors() <= before
    finally:
        for descriptor in spare:
            os.close(descriptor)


@pytest.mark.parametrize("fails", ["socketpair", "dup", "dup2"])
def test_failure(ends: Ends, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Whatever fails, the request is as it was and nothing is left."""

    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    before = descriptors()
    with monkeypatch.context() as patch:
        place = {"socketpair": socket, "dup": socket.socket, "dup2": os}[fails]
        patch.setattr(place, fails, fail)
        with pytest.raises(OSError, match="Too many open files"):
            Detached({SOCKET_KEY: ends.servers})
    assert descriptors() <= before
    assert_untouched(ends)
