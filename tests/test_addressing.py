"""Whom a call is about: what ``to`` and ``exclude`` take, and what they refuse."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from peer import TIMEOUT, Connect, Peer, connect, run_handler
from servers import wait_until

from wsthread import Broadcast, Connection, ListenableManager, Manager, Opcode, SimpleManager

__all__ = ["connect"]


class Crowd(NamedTuple):
    """Three members of a manager: 0 and 1 are in group "a", 1 and 2 in group "b". And three who are no members."""

    manager: Manager
    conns: list[Connection]
    peers: list[Peer]
    other: Connection  # Of another manager.
    closed: Connection
    stranger: Connection  # Not let in.

    def reached(self) -> str:
        """Tell who got a message, once each, by sending everybody another one."""
        assert self.manager.broadcast("end").sent == 3
        found = ""
        for number, peer in enumerate(self.peers):
            messages = list(iter(lambda: peer.read()[1], b"end"))
            assert messages in ([], [b"x"])
            found += str(number) * len(messages)
        return found


@pytest.fixture
def crowd(connect: Connect) -> Iterator[Crowd]:
    release = threading.Event()

    def on_connect(conn: Connection) -> None:
        if conn.request.path == "/stranger":
            release.wait(TIMEOUT)

    manager = ListenableManager(on_connect=on_connect)
    pairs = []
    for groups in ("a", "ab", "b"):
        pairs.append(connect(manager))
        for group in groups:
            pairs[-1][0].join(group)  # This lets it in.
    conns = [conn for conn, _ in pairs]
    closed, peer = connect(manager)
    peer.close_frame()
    wait_until(lambda: closed.closed)
    other, _ = connect(ListenableManager())
    other.join("a")
    stranger, _ = connect(manager, "/stranger")
    yield Crowd(manager, conns, [peer for _, peer in pairs], other, closed, stranger)
    release.set()


#: What is addressed, whom it reaches, and how many of them are no members.
TO: list[tuple[str, Callable[[Crowd], Any], str, int]] = [
    ("everybody", lambda crowd: None, "012", 0),
    ("a group", lambda crowd: "a", "01", 0),
    ("a group without members", lambda crowd: "nobody", "", 0),
    ("a group called ''", lambda crowd: "", "", 0),
    ("a connection", lambda crowd: crowd.conns[2], "2", 0),
    ("groups in a list", lambda crowd: ["a", "b"], "012", 0),
    ("groups in a tuple", lambda crowd: ("b", "nobody"), "12", 0),
    ("groups in a set", lambda crowd: {"a", "b"}, "012", 0),
    ("groups in a generator", lambda crowd: (name for name in "ab"), "012", 0),
    ("groups as keys", lambda crowd: {"a": 1}.keys(), "01", 0),
    ("a group twice", lambda crowd: ["a", "a"], "01", 0),
    ("connections in a list", lambda crowd: [crowd.conns[0], crowd.conns[2]], "02", 0),
    ("connections in a tuple", lambda crowd: tuple(crowd.conns), "012", 0),
    ("connections in a set", lambda crowd: set(crowd.conns[:2]), "01", 0),
    ("connections in a generator", lambda crowd: (conn for conn in crowd.conns), "012", 0),
    ("connections in an iterator", lambda crowd: iter(crowd.conns), "012", 0),
    ("connections as values", lambda crowd: {"Ada": crowd.conns[1]}.values(), "1", 0),
    ("the members of a group", lambda crowd: crowd.manager.in_group("b"), "12", 0),
    ("a connection twice", lambda crowd: [crowd.conns[0], crowd.conns[0]], "0", 0),
    ("a mixture", lambda crowd: ["a", crowd.conns[2]], "012", 0),
    ("a mixture that overlaps", lambda crowd: [crowd.conns[0], "a", crowd.conns[1], "a"], "01", 0),
    ("nobody, as a list", lambda crowd: [], "", 0),
    ("nobody, as a tuple", lambda crowd: (), "", 0),
    ("nobody, as an iterator", lambda crowd: iter(()), "", 0),
    ("another manager's", lambda crowd: crowd.other, "", 1),
    ("one that is closed", lambda crowd: crowd.closed, "", 1),
    ("one that is not let in", lambda crowd: crowd.stranger, "", 1),
    ("some that are not here", lambda crowd: [crowd.other, crowd.closed, crowd.stranger, crowd.conns[0]], "0", 3),
    ("one that is closed, twice", lambda crowd: [crowd.closed, crowd.closed], "", 1),
]
#: What is refused, and how the message shows it.
REFUSED: list[tuple[str, Callable[[Crowd], Any], str]] = [
    ("a number", lambda crowd: 7, "not 7;"),
    ("bytes", lambda crowd: b"ab", "not b'ab';"),
    ("no bytes", lambda crowd: b"", "not b'';"),
    ("a bytearray", lambda crowd: bytearray(b"ab"), r"not bytearray\(b'ab'\);"),
    ("a memoryview", lambda crowd: memoryview(b"ab"), "not <memory at"),
    ("a truth value", lambda crowd: True, "not True;"),
    ("a function", lambda crowd: len, "not <built-in function len>;"),
    ("the manager", lambda crowd: crowd.manager, "not <wsthread"),
    ("None in a list", lambda crowd: [None], "not None;"),
    ("a number in a list", lambda crowd: ["a", 7], "not 7;"),
    ("bytes in a list", lambda crowd: [b"a"], "not b'a';"),
    ("a list in a list", lambda crowd: [["a"]], r"not \['a'\];"),
    ("a list of connections in a list", lambda crowd: [crowd.conns], "not \\[<wsthread"),
    ("the last one", lambda crowd: [*crowd.conns, 7], "not 7;"),
    ("one that a generator yields", lambda crowd: (one for one in ("a", None)), "not None;"),
]


def everywhere(crowd: Crowd) -> list[tuple[str, Callable[[Any], Any]]]:
    """Return each call that has the argument, by the argument's name."""
    manager = crowd.manager
    return [
        ("to", lambda value: manager.broadcast("x", to=value)),
        ("exclude", lambda value: manager.broadcast("x", exclude=value)),
        ("exclude", lambda value: manager.broadcast("x", to="a", exclude=value)),
        ("to", lambda value: manager.close(to=value)),
        ("exclude", lambda value: manager.close(exclude=value)),
    ]


@pytest.mark.parametrize("make, reached, failed", [case[1:] for case in TO], ids=[case[0] for case in TO])
def test_to(crowd: Crowd, make: Callable[[Crowd], Any], reached: str, failed: int) -> None:
    result = crowd.manager.broadcast("x", to=make(crowd))
    assert result == Broadcast(len(reached), 0, 0, failed)
    assert bool(result) == bool(reached)
    assert crowd.reached() == reached


EXCLUDE = [case[:3] for case in TO if case[0] != "everybody"]


@pytest.mark.parametrize("make, left_out", [case[1:] for case in EXCLUDE], ids=[case[0] for case in EXCLUDE])
def test_exclude(crowd: Crowd, make: Callable[[Crowd], Any], left_out: str) -> None:
    """Whoever is no member gets nothing anyway, so leaving him out is no failure."""
    reached = "".join(number for number in "012" if number not in left_out)
    assert crowd.manager.broadcast("x", exclude=make(crowd)) == (len(reached), 0, 0, 0)
    assert crowd.reached() == reached
    reached = reached.replace("0", "")
    assert crowd.manager.broadcast("x", to="b", exclude=make(crowd)) == (len(reached), 0, 0, 0)
    assert crowd.reached() == reached


@pytest.mark.parametrize("make, chosen", [case[1:3] for case in TO], ids=[case[0] for case in TO])
def test_close_to(crowd: Crowd, make: Callable[[Crowd], Any], chosen: str) -> None:
    assert crowd.manager.close(to=make(crowd), code=4001, reason="bye") == len(chosen)
    left = [number for number in "012" if number not in chosen]
    assert crowd.manager.connections == tuple([crowd.conns[int(number)] for number in left])
    assert crowd.other.connected and crowd.stranger.connected
    assert crowd.manager.broadcast("after") == (len(left), 0, 0, 0)
    for number, peer in enumerate(crowd.peers):
        assert peer.read() == ((Opcode.TEXT, b"after") if str(number) in left else (Opcode.CLOSE, b"\x0f\xa1bye"))


@pytest.mark.parametrize("make, left_out", [case[1:] for case in EXCLUDE], ids=[case[0] for case in EXCLUDE])
def test_close_exclude(crowd: Crowd, make: Callable[[Crowd], Any], left_out: str) -> None:
    assert crowd.manager.close(exclude=make(crowd)) == 3 - len(left_out)
    assert crowd.manager.connections == tuple([crowd.conns[int(number)] for number in left_out])


@pytest.mark.parametrize("make, shown", [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_everything_else_is_refused(crowd: Crowd, make: Callable[[Crowd], Any], shown: str) -> None:
    """At once and in one sentence, and nobody gets anything."""
    for name, call in everywhere(crowd):
        with pytest.raises(TypeError, match=f"^{name} takes group names, connections, or several of either, {shown}"):
            call(make(crowd))
    assert crowd.reached() == ""


def test_exclude_is_not_none(crowd: Crowd) -> None:
    """None means everybody where it is a recipient, so it means nothing here."""
    with pytest.raises(TypeError, match="^exclude takes .* not None;"):
        crowd.manager.broadcast("x", exclude=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^exclude takes .* not None;"):
        crowd.manager.close(exclude=None)  # type: ignore[arg-type]
    assert crowd.reached() == ""


def test_an_id_is_no_connection(crowd: Crowd) -> None:
    """It is a str like the name of a group, and would be one without members."""
    id = crowd.conns[0].id
    for name, call in everywhere(crowd):
        for value in (id, [id], ["a", id], (one for one in (id,))):
            with pytest.raises(TypeError, match=rf"^{name} takes connections, not their ids: manager.get\('{id}'\)"):
                call(value)
    assert crowd.reached() == ""
    # Some call a group like that on purpose.
    crowd.conns[0].join(id)
    assert crowd.manager.broadcast("x", to=id).sent == 1
    assert crowd.reached() == "0"
    assert crowd.manager.broadcast("x", exclude=id).sent == 2
    assert crowd.reached() == "12"


def test_the_argument_may_ask_the_manager(crowd: Crowd) -> None:
    """No lock is held while it is looked at, and what it raises is raised."""
    manager = crowd.manager
    chosen = (conn for conn in manager.connections if manager.get(conn.id) and "b" in conn.groups)
    assert manager.broadcast("x", to=chosen, exclude=(manager.connections[2] for _ in range(1))).sent == 1
    assert crowd.reached() == "1"

    def fail() -> Iterator[str]:
        yield "a"
        raise KeyError("a bug")

    for _, call in everywhere(crowd):
        with pytest.raises(KeyError, match="a bug"):
            call(fail())
    assert crowd.reached() == ""


@pytest.mark.parametrize("several", [False, True])
def test_a_connection_as_recipient_loses_no_message(connect: Connect, several: bool) -> None:
    """A connection can be iterated over, which would take its messages."""
    got: list[str] = []
    manager = ListenableManager()

    @manager.on_message
    def on_message(conn: Connection, opcode: Opcode, payload: str) -> None:
        got.append(payload)
        assert manager.broadcast(f"re {payload}", to=[conn] if several else conn).sent == 1
        assert manager.broadcast("never", exclude=[conn] if several else conn).sent == 0
        assert manager.broadcast("never", to=(), exclude=conn).sent == 0

    _, peer = connect(manager)
    for number in range(3):
        peer.send(Opcode.TEXT, b"%d" % number)
    assert [peer.read()[1] for _ in range(3)] == [b"re 0", b"re 1", b"re 2"]
    peer.close_frame()
    assert peer.read_close() == 1000
    assert got == ["0", "1", "2"]


def test_a_connection_of_a_handler(connect: Connect) -> None:
    manager: list[SimpleManager] = []

    def handler(conn: Connection) -> None:
        for message in conn:
            assert isinstance(message, str)
            manager[0].broadcast(f"re {message}", to=conn)

    manager.append(SimpleManager(handler))
    _, peer = connect(manager[0])
    peer.send(Opcode.TEXT, b"a")
    peer.send(Opcode.TEXT, b"b")
    assert [peer.read()[1] for _ in range(2)] == [b"re a", b"re b"]


@pytest.mark.parametrize("group", [7, None, b"room", ["room"], True], ids=repr)
def test_a_group_is_a_str(connect: Connect, group: Any) -> None:
    def handler(conn: Connection) -> None:
        conn.join("room")
        conn.receive()

    conn, _ = run_handler(connect, handler)
    wait_until(lambda: conn.groups == {"room"})
    for call in (conn.join, conn.leave, Manager().members):
        with pytest.raises(TypeError, match="^a group is a str, not "):
            call(group)
    assert conn.groups == {"room"}


def test_members_of_a_group(crowd: Crowd) -> None:
    assert crowd.manager.in_group("a") == tuple(crowd.conns[:2])
    assert crowd.manager.in_group("nobody") == ()
    crowd.conns[0].leave("a")
    assert crowd.manager.in_group("a") == (crowd.conns[1],)
    crowd.conns[1].close()
    assert crowd.manager.in_group("a") == ()
    assert crowd.conns[1].groups == frozenset()
