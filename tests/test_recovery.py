"""Clients that come back, to managers that are joined by a bus of this test."""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from peer import Connect, connect
from servers import wait_until

from wsthread import (
    BackplaneFull, Connection, ConnectionClosed, ListenableManager, Opcode, SimpleManager, Upgrader, clock, testing,
)
from wsthread.bus.backplane import Backplane, Entry, Gap, Health, Listener
from wsthread.connection import link_of
from wsthread.history import History
from wsthread.manager import hub_of
from wsthread.wire.resume import SUBPROTOCOL

__all__ = ["connect"]

Seen = dict[str, int]
_dialed: list[testing.WebSocket] = []  # In this test.


def dial(*args: Any, **options: Any) -> testing.WebSocket:
    _dialed.append(testing.connect(*args, **options))
    return _dialed[-1]


class Bus:
    """What joins the lines of a test. Each has a thread that gives its listener what comes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lines: list[Line] = []
        self.kept: list[Entry] = []

    def send(self, line: Line, entry: Entry) -> None:
        self.kept.append(entry)
        for other in self.lines:
            if other is not line:
                other.inbox.put(entry)


class Line(Backplane):
    """A backplane. It may be paused, and then lags behind."""

    knows_ends = True

    def __init__(self, bus: Bus) -> None:
        super().__init__()
        self.bus = bus
        self.number = 0
        self.is_full = False
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.may_run = threading.Event()
        self.may_run.set()
        self.listener: Listener | None = None

    def start(self, name: str, listener: Listener, history: int = 0) -> None:
        self.listener = listener
        with self.bus.lock:
            for line in self.bus.lines:
                line.inbox.put(("begin", self.publisher, 0))
            begun = set()
            for entry in self.bus.kept[-history:] if history else []:
                if entry.publisher not in begun:
                    listener.begin(entry.publisher, entry.number - 1)
                    begun.add(entry.publisher)
                listener.remember(entry)
            for line in self.bus.lines:
                if line.publisher not in begun:
                    listener.begin(line.publisher, line.number)
            self.bus.lines.append(self)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        assert self.listener is not None
        while (item := self.inbox.get()) is not None:
            self.may_run.wait()
            if isinstance(item, Entry):
                self.listener.deliver(item)
            elif isinstance(item, Gap):
                self.listener.note_gap(item)
            elif item[0] == "begin":
                self.listener.begin(*item[1:])
            else:
                self.listener.note_gone(item[1])

    def publish(self, kind: str, header: dict[str, Any], payload: bytes = b"") -> int:
        with self.bus.lock:
            if self.is_full:
                raise BackplaneFull("the queue is full")
            self.number += 1
            self.bus.send(self, Entry(self.publisher, self.number, kind, header, payload))
            return self.number

    def health(self) -> Health:
        return Health(True, 1.0, published=self.number)

    def close(self, timeout: float) -> None:
        with self.bus.lock:
            if self in self.bus.lines:
                self.bus.lines.remove(self)
                for line in self.bus.lines:
                    line.inbox.put(("gone", self.publisher))
        self.inbox.put(None)

    def reset_after_fork(self) -> None:
        """Do nothing: only tests of other rooms fork."""


class Process:
    """A manager whose connections join the groups of their query."""

    def __init__(self, name: str, bus: Bus | None = None, **options: Any) -> None:
        self.line = None if bus is None else Line(bus)
        self.may_join = threading.Event()
        self.may_join.set()
        self.closed: list[Connection] = []
        options.setdefault("history", History())
        self.manager = ListenableManager(
            name=name, backplane=self.line, on_connect=self._join, on_message=self._reply,
            on_close=self.closed.append, **options)

    def _join(self, conn: Connection) -> None:
        assert self.may_join.wait(10)
        for group in conn.request.args.getlist("group"):
            conn.join(group)

    def _reply(self, conn: Connection, opcode: int, payload: str | bytes) -> None:
        conn.send(payload)


class Client:
    """What wsthread.js does."""

    def __init__(self, *groups: str, seen: Seen | None = None) -> None:
        self.groups = groups or ("a",)
        self.seen: Seen | None = seen
        self.got: list[str | bytes] = []
        self.recovered: list[bool] = []
        self.has_lost = self.is_up_to_date = False
        self.subprotocol: str | None = None
        self.socket: testing.WebSocket | None = None

    def open(self, process: Process, offered: Sequence[str] = (), **options: Any) -> Client:
        query = "/?" + "&".join(f"group={group}" for group in self.groups)
        self.socket = dial(
            Upgrader(process.manager, **options), query, subprotocols=[SUBPROTOCOL, *offered])
        self.socket.send(json.dumps(self.seen))
        self.is_up_to_date = False
        return self

    def connect(self, process: Process, **options: Any) -> Client:
        """Open, and get all until the client is up to date."""
        self.open(process, **options)
        told = len(self.recovered)
        self.get(lambda: len(self.recovered) > told)
        return self

    def get(self, is_enough: Callable[[], bool], timeout: float = 10) -> Client:
        assert self.socket is not None
        deadline = time.monotonic() + timeout
        while not is_enough():
            self.take(self.socket.receive(timeout=deadline - time.monotonic()))
        return self

    def get_messages(self, count: int) -> list[str | bytes]:
        self.get(lambda: len(self.got) >= count)
        return self.got

    def drain(self) -> None:
        """Get what has come."""
        assert self.socket is not None
        try:
            while True:
                self.take(self.socket.receive(timeout=0.02))
        except (TimeoutError, ConnectionClosed):
            pass

    def take(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            number, _, rest = message.partition(b"\n")
            self.note(number.decode())
            self.got.append(rest)
        elif message.startswith("{"):
            notice = json.loads(message)
            self.seen = notice.get("seen", self.seen)
            self.subprotocol = notice.get("subprotocol", self.subprotocol)
            if notice.get("recovered"):
                self.recovered.append(not self.has_lost)
                self.has_lost, self.is_up_to_date = False, True
            elif "recovered" in notice and self.is_up_to_date:
                self.recovered.append(False)
            elif "recovered" in notice:
                self.has_lost = True
        else:
            first, feed, text = message.partition("\n")
            self.note(first)
            if feed:
                self.got.append(text)

    def note(self, number: str) -> None:
        if number:
            assert self.seen is not None
            publisher, _, digits = number.partition(":")
            assert int(digits) > self.seen.get(publisher, 0), "twice, or in disorder"
            self.seen[publisher] = int(digits)

    def cut(self) -> Client:
        assert self.socket is not None
        self.socket.terminate()
        return self


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def make(bus: Bus | None = None, **options: Any) -> Process:
        made.append(Process(f"{request.node.name[:60]} {len(made)}", bus, **options))
        return made[-1]

    yield make
    for process in made:
        process.may_join.set()
    for socket in _dialed:
        socket.terminate()
    _dialed.clear()
    for process in made:
        process.manager.shutdown(timeout=2)


Make = Callable[..., Process]


# One process


def test_messages_have_numbers(processes: Make) -> None:
    process = processes()
    client = Client().connect(process)
    process.manager.broadcast("one")
    process.manager.broadcast(b"two", to="a")
    process.manager.broadcast("three", to="b")
    process.manager.broadcast("four", to="a", local=True)
    assert client.get_messages(3) == ["one", b"two", "four"]
    assert client.seen is not None and list(client.seen.values()) == [2]


def test_plain_clients_stay_as_they_are(processes: Make) -> None:
    process = processes()
    plain = dial(Upgrader(process.manager), "/?group=a")
    client = Client().connect(process)
    process.manager.broadcast("one")
    assert plain.receive() == "one" and client.get_messages(1) == ["one"]
    plain.send("two")
    assert plain.receive() == "two"


@pytest.mark.parametrize("payload", ["reply", b"reply", "", "x" * 100_000, b"x" * 100_000])
def test_a_reply_has_no_number(processes: Make, payload: str | bytes) -> None:
    client = Client().connect(processes())
    assert client.socket is not None
    client.socket.send(payload)
    assert client.get_messages(1) == [payload]


def test_a_posted_message_has_no_number(processes: Make) -> None:
    process = processes()
    client = Client().connect(process)
    process.manager.connections[0].post("posted")
    assert client.get_messages(1) == ["posted"]


def test_who_comes_back_gets_what_it_has_missed(processes: Make) -> None:
    process = processes()
    client = Client("a", "b").connect(process)
    process.manager.broadcast("one", to="a")
    client.get_messages(1)
    client.cut()
    for text, to in (("two", "a"), ("no", "c"), ("three", "b"), ("four", None)):
        process.manager.broadcast(text, to=to)
    process.manager.broadcast("no", exclude="a")
    process.manager.broadcast(b"five", to=["a", "b"])
    process.manager.broadcast("no", local=True)
    client.connect(process)
    process.manager.broadcast("six", to="a")
    assert client.get_messages(6) == ["one", "two", "three", "four", b"five", "six"]
    assert client.recovered == [True, True]


def test_what_came_before_the_first_time_was_not_missed(processes: Make) -> None:
    process = processes()
    process.manager.broadcast("before")
    client = Client().connect(process)
    assert (client.got, client.recovered) == ([], [True])
    client.cut().connect(process)
    assert (client.got, client.recovered) == ([], [True, True])


def test_what_comes_while_the_application_lets_somebody_in(processes: Make) -> None:
    process = processes()
    process.may_join.clear()
    client = Client().open(process)
    client.get(lambda: client.seen is not None)
    process.manager.broadcast("one", to="a")
    process.may_join.set()
    assert client.get_messages(1) == ["one"]


@pytest.mark.parametrize("history", [History(count=2), History(bytes=8), History(seconds=0.01)])
def test_what_is_not_kept_any_more(processes: Make, history: History) -> None:
    process = processes(history=history)
    client = Client().connect(process).cut()
    for number in range(3):
        process.manager.broadcast(f"{number:04}")
    clock_passes(0.02)
    client.connect(process)
    assert (client.got, client.recovered) == ([], [True, False])
    process.manager.broadcast("live")
    assert client.get_messages(1) == ["live"]


def clock_passes(seconds: float) -> None:
    until = clock.now() + seconds
    wait_until(lambda: clock.now() > until)


def test_without_a_history_nobody_recovers(processes: Make) -> None:
    process = processes(history=None)
    client = Client().connect(process)
    process.manager.broadcast("one")
    client.get_messages(1)
    client.cut().connect(process)
    process.manager.broadcast("two")
    assert client.get_messages(2) == ["one", "two"]
    assert client.recovered == [True, False] and client.seen == {}
    assert process.manager.stats()["history"] is None


def test_the_sender_that_is_left_out_does_not_get_it_later(processes: Make) -> None:
    process = processes()
    client, other = Client().connect(process), Client("b").connect(process)
    conn, second = process.manager.connections
    process.manager.broadcast("one", exclude=conn)
    process.manager.broadcast("two", exclude="b")
    assert client.get_messages(1) == ["two"]
    for one in (client, other):
        one.drain()
        one.cut().connect(process)
    assert (client.got, other.got) == (["two"], ["one"])


def test_who_is_left_out_while_it_is_behind(processes: Make) -> None:
    process = processes()
    process.may_join.clear()
    client = Client().open(process)
    client.get(lambda: client.seen is not None)
    wait_until(lambda: hub_of(process.manager).alive())
    conn, = hub_of(process.manager).alive()
    process.manager.broadcast("no", exclude=conn)
    process.manager.broadcast("yes")
    process.may_join.set()
    assert client.get_messages(1) == ["yes"]


def test_what_is_for_a_connection_comes_while_it_is_behind(processes: Make) -> None:
    process = processes()
    joined, go_on = threading.Event(), threading.Event()

    def join(conn: Connection) -> None:
        conn.join("a")
        joined.set()
        go_on.wait(10)

    process.manager.on_connect = join
    client = Client().open(process)
    assert joined.wait(10)
    conn, = process.manager.connections
    process.manager.broadcast("early", to=[conn, "b"])
    assert client.get_messages(1) == ["early"]
    go_on.set()
    client.get(lambda: client.recovered != [])
    assert client.got == ["early"]


def test_a_handler_is_behind_until_it_receives() -> None:
    joined, go_on = threading.Event(), threading.Event()

    def handler(conn: Connection) -> None:
        conn.join("a")
        joined.set()
        go_on.wait(10)
        for message in conn:
            conn.send(message)

    manager = SimpleManager(handler, history=History(), name="handler of test_recovery", backplane=None)
    client = Client()
    client.socket = dial(Upgrader(manager), subprotocols=[SUBPROTOCOL])
    client.socket.send("null")
    assert joined.wait(10)
    manager.broadcast("one", to="a")
    go_on.set()
    assert client.get(lambda: client.recovered != []).got == ["one"]
    client.cut()


@pytest.mark.parametrize("message", ["", "[]", b"\xff"])
def test_a_first_message_that_says_nothing(processes: Make, message: str | bytes) -> None:
    process = processes()
    socket = dial(Upgrader(process.manager), subprotocols=[SUBPROTOCOL])
    socket.send(message)
    with pytest.raises(ConnectionClosed) as error:
        socket.receive()
    assert error.value.code == 1002 and "first message" in error.value.reason
    wait_until(lambda: not hub_of(process.manager).registry.admitted)
    assert process.closed == []


def test_no_first_message(processes: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsthread.recovery._PATIENCE", 0.05)
    process = processes()
    socket = dial(Upgrader(process.manager), subprotocols=[SUBPROTOCOL])
    with pytest.raises(ConnectionClosed) as error:
        socket.receive()
    assert error.value.code == 1001 and process.closed == []


def test_who_leaves_before_its_first_message(processes: Make) -> None:
    process = processes()
    dial(Upgrader(process.manager), subprotocols=[SUBPROTOCOL]).terminate()
    wait_until(lambda: not hub_of(process.manager).registry.admitted)
    assert process.closed == []


@pytest.mark.parametrize(("offered", "supported", "expected"), [
    ((), (), None), ((), ("x",), None), (("x", "y"), ("y", "x"), "y"), (("z",), ("x",), None)])
def test_the_subprotocol_of_the_application(
    processes: Make, offered: Sequence[str], supported: Sequence[str], expected: str | None,
) -> None:
    process = processes()
    client = Client().open(process, offered, subprotocols=supported)
    client.get(lambda: client.recovered != [])
    assert client.subprotocol == expected == process.manager.connections[0].subprotocol
    assert client.socket is not None and client.socket.subprotocol == SUBPROTOCOL


def test_overflow_may_not_block() -> None:
    with pytest.raises(ValueError, match='^overflow is "block"'):
        ListenableManager(history=History(), overflow="block")


def test_more_is_missed_than_an_outbox_holds(processes: Make) -> None:
    process = processes(max_outbox_size=100_000)
    client = Client().connect(process).cut()
    sent = [f"{number} {'x' * 50_000}" for number in range(200)]
    for text in sent:
        process.manager.broadcast(text)
    client.connect(process)
    assert client.got == sent and client.recovered == [True, True]


def test_the_ring_overtakes_a_client_that_reads_slowly(processes: Make) -> None:
    process = processes(max_outbox_size=100_000, history=History(count=100))
    client = Client().connect(process).cut()
    for _ in range(100):
        process.manager.broadcast("x" * 100_000)
    client.open(process)
    wait_until(lambda: process.manager.stats()["queued_bytes"] > 0)
    for _ in range(100):
        process.manager.broadcast("y" * 10)
    client.get(lambda: len(client.recovered) == 2)
    assert client.recovered == [True, False]
    assert len(client.got) < 200
    process.manager.broadcast("live")
    assert client.get(lambda: client.got[-1] == "live")


def test_a_client_that_vanishes_before_it_is_told_the_rest(processes: Make) -> None:
    process = processes(history=History(count=2))
    client = Client().connect(process).cut()
    for number in range(3):
        process.manager.broadcast(f"{number}")
    process.may_join.clear()
    client.open(process)
    client.get(lambda: client.has_lost)
    process.may_join.set()
    client.cut()
    client.connect(process)
    assert client.recovered == [True, False]


def test_something_is_missed_while_a_client_catches_up(processes: Make) -> None:
    process = processes(Bus())
    client = Client().connect(process).cut()
    process.may_join.clear()
    client.open(process)
    wait_until(lambda: process.manager.stats()["history"]["clients"] == 1)
    assert process.line is not None
    process.line.inbox.put(Gap(None, None, "lost"))
    client.get(lambda: client.has_lost)
    process.may_join.set()
    client.get(lambda: len(client.recovered) == 2)
    assert client.recovered == [True, False]


def test_a_client_that_vanishes_while_it_catches_up(processes: Make) -> None:
    process = processes(max_outbox_size=100_000)
    client = Client().connect(process).cut()
    for _ in range(100):
        process.manager.broadcast("x" * 100_000)
    client.open(process)
    wait_until(lambda: process.manager.stats()["queued_bytes"] > 0)
    client.cut()
    wait_until(lambda: not hub_of(process.manager).registry.admitted)
    assert len(process.closed) == 2
    assert process.manager.stats()["history"]["clients"] == 0


def test_a_client_of_a_quiet_group_is_told_what_it_has_seen(processes: Make) -> None:
    process = processes(history=History(count=8))
    client = Client("quiet").connect(process)
    for _ in range(30):
        process.manager.broadcast("loud", to="loud")
    client.drain()
    client.cut()
    process.manager.broadcast("quiet", to="quiet")
    client.connect(process)
    assert (client.got, client.recovered) == (["quiet"], [True, True])


def test_the_housekeeper_tells_it_too(processes: Make) -> None:
    process = processes(history=History(seconds=0.4))
    client = Client("quiet").connect(process)
    process.manager.broadcast("loud", to="loud")
    clock_passes(0.2)
    hub_of(process.manager).check(clock.now())
    client.get(lambda: client.seen != {})


def test_stats(processes: Make) -> None:
    process = processes()
    client = Client().connect(process)
    process.manager.broadcast("four")
    client.cut()
    Client(seen={"unknown": 1}).connect(process)
    assert process.manager.stats()["history"] == {
        "messages": 1, "bytes": 4, "clients": 1, "recovered": 1, "not_recovered": 1}


def test_on_slow_may_broadcast(processes: Make) -> None:
    process = processes(max_outbox_size=10_000)
    told = threading.Event()

    @process.manager.on_slow
    def slow(conn: Connection) -> None:
        process.manager.broadcast("somebody is slow")
        told.set()

    Client().connect(process)
    wait_until(lambda: process.manager.connections)
    while not told.is_set():
        process.manager.broadcast("x" * 100_000)


# Several processes


def test_a_client_moves_to_another_process(processes: Make) -> None:
    bus = Bus()
    one, two = processes(bus), processes(bus)
    other = Client().connect(two)
    client = Client().connect(one)
    one.manager.broadcast("1", to="a")
    other.get_messages(1)
    two.manager.broadcast("2", to="a")
    client.get_messages(2)
    client.cut()
    one.manager.broadcast("3", to="a")
    two.manager.broadcast("4", to="a")
    two.manager.broadcast("no", to="b")
    two.manager.notify("not a message")
    other.get_messages(4)
    client.connect(two)
    assert sorted(map(str, client.got)) == ["1", "2", "3", "4"] and client.recovered == [True, True]


def test_a_process_that_lags_behind(processes: Make) -> None:
    bus = Bus()
    one, two = processes(bus), processes(bus)
    Client().connect(two).cut()
    client = Client().connect(one)
    one.manager.broadcast("0")
    client.get_messages(1)
    assert two.line is not None
    wait_until(lambda: two.line is not None and two.line.inbox.empty())
    two.line.may_run.clear()
    for number in (1, 2, 3):
        one.manager.broadcast(str(number))
    client.get_messages(4)
    client.cut().connect(two)
    assert one.line is not None and client.seen is not None
    assert client.seen[one.line.publisher] == one.line.number
    one.manager.broadcast("4", exclude="b")
    two.line.may_run.set()
    assert client.get_messages(5) == ["0", "1", "2", "3", "4"] and client.recovered == [True, True]


def test_a_client_that_was_ahead_and_hears_nothing_for_long(processes: Make) -> None:
    bus = Bus()
    one, two = processes(bus, history=History(count=8)), processes(bus, history=History(count=8))
    Client().connect(two).cut()
    assert one.line is not None and two.line is not None and two.line.listener is not None
    two.line.may_run.clear()
    Client().connect(one).cut()
    two.line.listener.begin(one.line.publisher, 0)
    one.manager.broadcast("no", to="b")
    client = Client().connect(one).cut().connect(two)
    two.line.may_run.set()
    for _ in range(20):
        one.manager.broadcast("no", to="b")
    publisher, number = one.line.publisher, one.line.number
    client.get(lambda: client.seen is not None and client.seen.get(publisher, 0) > number - 8)
    client.cut().connect(two)
    assert client.recovered == [True, True, True]


def test_what_was_seen_of_a_process_that_is_about_to_be_heard(processes: Make) -> None:
    bus = Bus()
    one, two = processes(bus), processes(bus)
    Client().connect(two).cut()
    assert one.line is not None and two.line is not None and two.line.listener is not None
    two.line.may_run.clear()
    client = Client().connect(one)
    two.line.listener.begin(one.line.publisher, 0)
    one.manager.broadcast("1")
    client.get_messages(1)
    client.cut().connect(two).cut()
    two.line.may_run.set()
    client.connect(two)
    one.manager.broadcast("2")
    assert client.get_messages(2) == ["1", "2"] and client.recovered == [True, True, True]


def test_what_was_seen_of_a_process_that_is_not_known_yet(processes: Make) -> None:
    bus = Bus()
    one, two = processes(bus), processes(bus)
    Client().connect(two).cut()
    assert one.line is not None and two.line is not None
    two.line.may_run.clear()
    client = Client().connect(one)
    one.manager.broadcast("1")
    client.get_messages(1)
    client.cut().connect(two)
    assert client.recovered == [True, False]
    assert client.seen is not None and client.seen[f"?{one.line.publisher}"] == one.line.number
    client.cut().connect(two)
    assert client.recovered == [True, False, True]  # It was told once.
    client.cut()
    two.line.may_run.set()
    client.connect(two)
    assert client.seen is not None and client.seen[one.line.publisher] == one.line.number
    one.manager.broadcast("2")
    assert client.get_messages(2) == ["1", "2"] and client.recovered == [True, False, True, True]


def test_what_was_seen_of_a_process_that_stays_unknown(processes: Make) -> None:
    process = processes(ping_interval=None)
    client = Client(seen={"unknown": 1, "?another": 2}).connect(process)
    assert client.recovered == [False] and client.seen == {"?another": 2, "?unknown": 1}
    clock.advance(301)
    process.manager.broadcast("1")
    client.get(lambda: client.seen is not None and len(client.seen) == 1)
    assert client.got == ["1"]


def test_too_many_unknown_processes(processes: Make) -> None:
    client = Client(seen={f"?{number}": 1 for number in range(2_000)}).connect(processes())
    assert client.seen == {f"?{number}": 1 for number in range(1_000, 2_000)}


def test_a_process_that_has_missed_something(processes: Make) -> None:
    bus = Bus()
    one, two = processes(bus), processes(bus)
    Client().connect(one).cut()
    client = Client().connect(two)
    left = Client().connect(two).cut()
    one.manager.broadcast("1")
    client.get_messages(1)
    assert one.line is not None and two.line is not None
    one.line.number += 2  # They never leave.
    two.line.inbox.put(Gap(one.line.publisher, 2, "lost"))
    client.get(lambda: client.recovered == [True, False])
    left.connect(two)
    one.manager.broadcast("2")
    client.get_messages(2)
    client.cut().connect(two)
    assert client.recovered == [True, False, True] and left.recovered == [True, False]


def test_a_full_backplane(processes: Make) -> None:
    bus = Bus()
    process = processes(bus)
    client, left = Client().connect(process), Client().connect(process).cut()
    assert process.line is not None
    process.line.is_full = True
    with pytest.raises(BackplaneFull):
        process.manager.broadcast("here")
    assert client.get_messages(1) == ["here"]
    client.get(lambda: client.recovered == [True, False])
    left.connect(process)
    assert left.recovered == [True, False]


def test_a_process_that_starts_later_has_what_others_remember(processes: Make) -> None:
    bus = Bus()
    one = processes(bus)
    client = Client().connect(one)
    one.manager.broadcast("1")
    client.get_messages(1)
    client.cut()
    one.manager.broadcast("2")
    one.manager.notify("not a message")
    assert one.line is not None
    one.line.publish("m", {"to": 1})  # Nobody can read that.
    two = processes(bus)
    client.connect(two)
    assert (client.got, client.recovered) == (["1", "2"], [True, True])


@pytest.mark.parametrize("seed", range(3))
def test_reconnects_at_random(processes: Make, seed: int) -> None:
    chance = random.Random(seed)
    bus = Bus()
    all_processes = [processes(bus, history=History(count=100_000)) for _ in range(3)]
    for process in all_processes:
        Client().connect(process).cut()
    clients = [Client(*chance.choice(["a", "b", "ab"])).connect(chance.choice(all_processes)) for _ in range(6)]
    is_over = threading.Event()
    said: dict[tuple[int, int], list[str]] = {}

    def talk(index: int) -> None:
        chance, number = random.Random(index), 0
        texts = said[index, 0] = []
        while not is_over.is_set():
            number += 1
            group = chance.choice("ab")
            text = f"{group} {index} {number}"
            texts.append(text)
            all_processes[index].manager.broadcast(text, to=group)
            time.sleep(0.001)

    talkers = [threading.Thread(target=talk, args=[index]) for index in range(3)]
    for talker in talkers:
        talker.start()
    try:
        for _ in range(40):
            client = chance.choice(clients)
            for _ in range(chance.randrange(20)):
                assert client.socket is not None
                client.take(client.socket.receive())
            client.cut()
            clock_passes(chance.random() / 50)
            client.connect(chance.choice(all_processes))
    finally:
        is_over.set()
        for talker in talkers:
            talker.join()
    for process in all_processes:
        assert process.line is not None
        wait_until(process.line.inbox.empty)
    for client in clients:
        while True:
            before = len(client.got)
            client.drain()
            if len(client.got) == before:
                break
        assert all(client.recovered)
        for texts in said.values():
            expected = [text for text in texts if text[0] in client.groups]
            own = [str(text) for text in client.got if str(text).split()[1] == texts[0].split()[1]]
            # It came for the first time some time after they began.
            assert own == expected[len(expected) - len(own):] and len(own) > len(expected) // 2


def test_clients_are_forgotten(processes: Make) -> None:
    process = processes()
    client = Client().connect(process)
    conn = process.manager.connections[0]
    client.cut()
    wait_until(lambda: conn.closed and link_of(conn).is_over)
    wait_until(lambda: process.manager.stats()["history"]["clients"] == 0)


@pytest.mark.timeout(60)
def test_on_slow_may_broadcast_whatever_made_a_client_slow(connect: Connect) -> None:
    """It is called when the delivery lock is free again."""
    told: list[bool] = []
    manager = ListenableManager(
        ping_interval=None, history=History(), backplane=None, max_outbox_size=100_000, overflow="drop_newest")

    @manager.on_connect
    def come(conn: Connection) -> None:
        for _ in range(200):
            manager.broadcast(bytes(60_000), to=["room", conn])

    @manager.on_slow
    def tell(conn: Connection) -> None:
        told.append(hub_of(manager).recovery.lock.locked())
        manager.broadcast("somebody is slow", to="operators")

    _, peer = connect(manager, is_resuming=True)
    peer.send(Opcode.TEXT, b"null")
    wait_until(lambda: told)
    assert told == [False]
    assert manager.broadcast("x", to="operators")._asdict() == {"sent": 0, "queued": 0, "dropped": 0, "failed": 0}
