"""What a manager does with other processes, which are other managers here, joined by a bus of this test."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from servers import wait_until

from wsthread import (
    BackplaneFull, Connection, ListenableManager, Manager, Upgrader, exchange, lifecycle, servers, testing,
)
from wsthread.bus.backplane import Backplane, BackplaneUnavailable, Entry, Gap, Health, Listener, NotNeeded
from wsthread.errands import Errands
from wsthread.manager import hub_of


class Bus:
    """What joins the backplanes of a test. Entries come at once, in the thread that publishes."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.lines: list[Line] = []
        self.entries: list[Entry] = []

    def send(self, line: Line, entry: Entry) -> None:
        with self.lock:
            self.entries.append(entry)
            for other in self.lines:
                if other is not line and other.listener is not None:
                    other.listener.deliver(entry)

    def say(self, kind: str, header: dict[str, Any], payload: bytes = b"") -> None:
        """Publish in the name of a process that is not here."""
        for line in self.lines:
            assert line.listener is not None
            line.listener.deliver(Entry("stranger", 1, kind, header, payload))


class Line(Backplane):
    """A backplane."""

    def __init__(self, bus: Bus, knows_ends: bool = True) -> None:
        super().__init__()
        self.bus = bus
        self.knows_ends = knows_ends
        self.listener: Listener | None = None
        self.is_full = False
        self.number = 0
        self.calls: list[str] = []

    def start(self, name: str, listener: Listener, history: int = 0) -> None:
        self.calls.append(f"start {name}")
        self.listener = listener
        self.bus.lines.append(self)

    def publish(self, kind: str, header: dict[str, Any], payload: bytes = b"") -> int:
        if self.is_full:
            raise BackplaneFull("the queue is full")
        self.number += 1
        self.bus.send(self, Entry(self.publisher, self.number, kind, header, payload))
        return self.number

    def health(self) -> Health:
        return Health(True, 1.0, published=self.number)

    def close(self, timeout: float) -> None:
        self.calls.append("close")
        self.bus.lines.remove(self)
        for line in self.bus.lines:
            assert line.listener is not None
            line.listener.note_gone(self.publisher)

    def reset_after_fork(self) -> None:
        self.bus.lock = threading.RLock()  # A thread of the parent may have held it.
        self.calls.append("reset")


class Process:
    """A manager, its backplane and its clients."""

    def __init__(self, bus: Bus, name: str, **options: Any) -> None:
        self.line = Line(bus, options.pop("knows_ends", True))
        self.groups: list[str] = []
        self.seen: list[list[Any]] = []  # What was to be told of the group, at each call.
        self.notices: list[Any] = []
        self.gaps: list[Gap] = []
        self.clients: list[testing.WebSocket] = []
        self.manager = ListenableManager(
            name=f"{name} of test_exchange", backplane=self.line, on_connect=self._join, on_members=self._note,
            on_notify=self.notices.append, on_gap=self.gaps.append, **options)

    def _note(self, group: str) -> None:
        self.groups.append(group)
        self.seen.append(self.infos(group))

    @staticmethod
    def _join(conn: Connection) -> None:
        group = conn.request.args.get("group")
        if group is not None:
            conn.join(group, info=conn.request.args.get("info"))

    def client(self, group: str = "a", info: str = "") -> testing.WebSocket:
        query = f"/?group={group}" + (f"&info={info}" if info else "")
        client = testing.connect(Upgrader(self.manager), query)
        self.clients.append(client)
        wait_until(lambda: client.connection in self.manager.connections)
        return client

    def end(self) -> None:
        for client in self.clients:
            client.terminate()
        self.manager.shutdown(timeout=2)

    def infos(self, group: str) -> list[Any]:
        return [member.info for member in self.manager.members(group)]


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def pair(bus: Bus) -> Iterator[tuple[Process, Process]]:
    processes = Process(bus, "first"), Process(bus, "second")
    yield processes
    for process in processes:
        process.end()


Pair = tuple[Process, Process]


def conn_of(client: testing.WebSocket) -> Connection:
    assert client.connection is not None
    return client.connection


@pytest.mark.parametrize(("call", "got"), [
    (lambda manager, own: manager.broadcast("x"), ["own a", "own b", "other a", "other b"]),
    (lambda manager, own: manager.broadcast("x", to="a"), ["own a", "other a"]),
    (lambda manager, own: manager.broadcast("x", to=iter(["a", "b"])), ["own a", "own b", "other a", "other b"]),
    (lambda manager, own: manager.broadcast("x", to=own), ["own a"]),
    (lambda manager, own: manager.broadcast("x", to=[own, "b"]), ["own a", "own b", "other b"]),
    (lambda manager, own: manager.broadcast("x", to=[]), []),
    (lambda manager, own: manager.broadcast("x", exclude="a"), ["own b", "other b"]),
    (lambda manager, own: manager.broadcast("x", exclude=iter([own])), ["own b", "other a", "other b"]),
    (lambda manager, own: manager.broadcast("x", local=True), ["own a", "own b"]),
    (lambda manager, own: manager.close(to="a", code=4000, reason="x"), ["own a", "other a"]),
    (lambda manager, own: manager.close(exclude="a", code=4000, reason="x"), ["own b", "other b"]),
    (lambda manager, own: manager.close(to=own, code=4000, reason="x"), ["own a"]),
])
def test_whom_it_reaches(pair: Pair, call: Callable[..., Any], got: list[str]) -> None:
    own, other = pair
    clients = {
        "own a": own.client("a"), "own b": own.client("b"), "other a": other.client("a"), "other b": other.client("b")}
    call(own.manager, conn_of(clients["own a"]))
    closes = "close" in call.__code__.co_names
    for name, client in clients.items():
        if name in got and closes:
            with pytest.raises(Exception, match="4000"):
                client.receive()
        elif name in got:
            assert client.receive() == "x"
        else:
            client.ping()
            assert conn_of(client).connected


@pytest.mark.parametrize("payload", ["text ü", b"\xff binary"])
def test_payloads(pair: Pair, payload: str | bytes) -> None:
    with pair[1].client() as client:
        assert not pair[0].manager.broadcast(payload)  # The result counts this process.
        assert client.receive() == payload


def test_those_of_this_process_come_first_and_a_full_queue_is_told(pair: Pair) -> None:
    own, other = pair
    with own.client() as here, other.client() as there:
        own.line.is_full = True
        for call in (lambda: own.manager.broadcast("x"), lambda: own.manager.notify(1)):
            with pytest.raises(BackplaneFull):
                call()
        assert here.receive() == "x"
        own.line.is_full = False
        own.manager.broadcast("y")
        assert (here.receive(), there.receive()) == ("y", "y")
    wait_until(lambda: own.notices == [1])


def test_notices(pair: Pair) -> None:
    data = {"logout": [42, None]}
    pair[1].client()
    pair[0].manager.notify(data)
    for process in pair:
        wait_until(lambda: process.notices == [data])
    for wrong in (object(), float("nan")):
        with pytest.raises((TypeError, ValueError)):
            pair[0].manager.notify(wrong)


def test_it_starts_with_the_first_connection_or_the_first_broadcast(pair: Pair) -> None:
    own, other = pair
    assert own.line.calls == other.line.calls == []
    own.manager.broadcast("x", local=True)
    assert own.line.calls == [] and own.manager.stats()["backplane"] is None
    own.manager.broadcast("x")
    other.client()
    assert [process.line.calls for process in pair] == [
        ["start first of test_exchange"], ["start second of test_exchange"]]
    stats = own.manager.stats()["backplane"]
    assert (stats["kind"], stats["name"], stats["healthy"]) == ("Line", "first of test_exchange", True)


def test_it_ends_with_the_manager(pair: Pair) -> None:
    own, _ = pair
    own.client("a", "Ada").close()
    assert own.manager.shutdown(timeout=2) and own.line.calls[-1] == "close"
    own.manager.broadcast("x")  # It goes nowhere else.
    assert own.line.calls[-1] == "close" and own.manager.stats()["backplane"] is None


# Presence


def test_members_of_all_processes(pair: Pair) -> None:
    own, other = pair
    ada = own.client("a", "Ada")
    own.client("a")  # It tells nothing.
    bob = other.client("a", "Bob")
    for process in pair:
        wait_until(lambda: process.infos("a") == ["Ada", "Bob"])
        assert [member.id for member in process.manager.members("a")] == [conn_of(ada).id, conn_of(bob).id]
        wait_until(lambda: set(process.groups) == {"a"})
        assert process.infos("b") == []
    for process in pair:
        process.groups.clear()
    conn_of(ada).join("a")  # Nothing new.
    conn_of(bob).join("a", info={"name": "Bert"})
    for process in pair:
        wait_until(lambda: process.infos("a") in (["Ada", {"name": "Bert"}], [{"name": "Bert"}, "Ada"]))
    ada.close()
    for process in pair:
        wait_until(lambda: process.infos("a") == [{"name": "Bert"}])
    conn_of(bob).leave("a")
    for process in pair:
        wait_until(lambda: process.infos("a") == [])


def test_who_starts_later_learns_of_those_before(pair: Pair) -> None:
    own, other = pair
    own.client("a", "Ada")
    assert other.infos("a") == []
    other.manager.broadcast("x")
    wait_until(lambda: other.infos("a") == ["Ada"])


def test_the_end_of_a_process(pair: Pair) -> None:
    own, other = pair
    own.client("a", "Ada")
    other.client("a", "Bob")
    wait_until(lambda: len(own.infos("a")) == 2)
    assert own.line.listener is not None
    own.line.listener.note_gone(other.line.publisher)
    assert own.infos("a") == ["Ada"]
    wait_until(lambda: own.seen[-1:] == [["Ada"]])


def test_a_gap_is_told_and_the_members_are_asked_for(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    own, other = pair
    own.client("a", "Ada")
    other.client("a", "Bob")
    wait_until(lambda: len(own.infos("a")) == 2)
    assert own.line.listener is not None
    own.line.listener.note_gone(other.line.publisher)
    gap = Gap(other.line.publisher, 3, "the queue was full")
    own.line.listener.note_gap(gap)
    wait_until(lambda: own.gaps == [gap] and len(own.infos("a")) == 2)
    assert "3 entries of" in caplog.text


def test_what_a_full_queue_kept_from_others_is_told_later(pair: Pair) -> None:
    own, other = pair
    other.client("b")
    client = own.client("b")
    own.line.is_full = True
    conn_of(client).join("a", info="Ada")
    wait_until(lambda: own.groups == ["a"])
    own.line.is_full = False
    assert other.infos("a") == []
    wait_until(lambda: other.infos("a") == ["Ada"])  # The housekeeper sees to it.


def test_signs_of_life(bus: Bus) -> None:
    own, other = (Process(bus, name, knows_ends=False, ping_interval=None) for name in ("first", "second"))
    try:
        own.client("a", "Ada")
        other.client("a", "Bob")
        wait_until(lambda: len(own.infos("a")) == 2)
        bus.entries.clear()
        for _ in range(5):
            testing.advance(5)
            wait_until(lambda: {entry.publisher for entry in bus.entries if entry.kind == "a"} == {
                own.line.publisher, other.line.publisher})
            bus.entries.clear()
        assert own.infos("a") == other.infos("a") and len(own.infos("a")) == 2
        assert own.line.listener is not None
        own.line.listener.note_gone(other.line.publisher)  # As if its entry had been lost.
        testing.advance(5)
        wait_until(lambda: len(own.infos("a")) == 2)
        other.line.is_full = True  # It is silent.
        testing.advance(21)
        wait_until(lambda: own.infos("a") == ["Ada"])
    finally:
        for process in (own, other):
            process.end()


# What nobody can read, and callbacks that fail


@pytest.mark.parametrize(("kind", "header"), [
    ("?", {}), ("m", {"to": 1}), ("c", {"to": None}), ("n", {}), ("p", {}), ("m", {"to": None, "text": True})])
def test_malformed_entries(pair: Pair, kind: str, header: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    own, _ = pair
    with own.client() as client:
        own.line.bus.say(kind, header, b"\xff")
        wait_until(lambda: "cannot be read" in caplog.text)
        assert own.manager.stats()["backplane"]["dropped"] == 1
        own.line.bus.say("m", {"to": None, "text": True}, b"ok")
        assert client.receive() == "ok"


def test_a_callback_that_fails(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    own, _ = pair

    @own.manager.on_notify
    def fail(data: Any) -> None:
        raise SystemExit(data)

    own.manager.notify("first")
    wait_until(lambda: "error in on_notify" in caplog.text)
    own.manager.on_notify(own.notices.append)
    own.manager.notify("second")
    wait_until(lambda: own.notices == ["second"])


def test_a_callback_that_is_stuck_is_told(
    pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, _ = pair
    monkeypatch.setattr(Errands, "add", lambda errands, errand: False)
    own.manager.notify(1)
    wait_until(lambda: "on_notify was not called" in caplog.text)


def test_a_slow_callback_delays_no_message(pair: Pair) -> None:
    own, other = pair
    going = threading.Event()
    own.manager.on_notify(lambda data: going.wait(10))
    with own.client() as client:
        other.manager.notify(1)
        other.manager.broadcast("x")
        assert client.receive() == "x"
    going.set()


def test_a_slow_peer_does_not_make_a_backplane_wait(bus: Bus) -> None:
    own = Process(bus, "blocking", overflow="block", max_outbox_size=1000, close_timeout=0.5)
    other = Process(bus, "other")
    try:
        with own.client() as client, own.client() as bystander:
            began = time.monotonic()
            for _ in range(40):
                other.manager.broadcast(b"x" * 100_000)
                assert bystander.receive() == b"x" * 100_000
            assert time.monotonic() - began < 10
            wait_until(lambda: not conn_of(client).connected)
    finally:
        for process in (own, other):
            process.end()


# Alone


def test_a_slow_callback_keeps_no_member_from_others(pair: Pair) -> None:
    own, other = pair
    going, is_stuck = threading.Event(), threading.Event()

    def stick(data: object) -> None:
        is_stuck.set()
        going.wait(10)

    own.manager.on_notify(stick)
    with own.client() as client:
        other.manager.notify(1)
        assert is_stuck.wait(5)
        conn_of(client).join("room", info="Ada")
        wait_until(lambda: [member.info for member in other.manager.members("room")] == ["Ada"], 5)
    going.set()


def test_a_member_that_could_not_be_told_of_is_told_of_later(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when there is no thread to be had."""
    own, other = pair
    other.manager.broadcast("x")  # It begins to listen.
    with own.client() as client:
        with monkeypatch.context() as context:
            context.setattr(Errands, "add", lambda errands, errand: False)
            conn_of(client).join("room", info="Ada")
        hub_of(own.manager).check(time.monotonic())
        wait_until(lambda: len(other.manager.members("room")) == 1)


def test_without_a_housekeeper_the_backplane_is_closed(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(lifecycle, "enter", refuse)
    process = Process(bus, "a")
    process.manager.broadcast("x")
    assert process.line.calls[1:] == ["close"] and process.manager.stats()["backplane"] is None


class Unavailable(Line):
    """A backplane that cannot be had."""

    error: Exception = BackplaneUnavailable("the directory is not ours")

    def start(self, name: str, listener: Listener, history: int = 0) -> None:
        raise self.error


@pytest.mark.parametrize(("error", "is_told"), [
    (BackplaneUnavailable("the directory is not ours"), True), (NotNeeded("one process"), False),
    (RuntimeError("can't start new thread"), True)])
def test_alone(bus: Bus, error: Exception, is_told: bool, caplog: pytest.LogCaptureFixture) -> None:
    line = Unavailable(bus)
    line.error = error
    manager = ListenableManager(name="alone", backplane=line)
    with testing.connect(Upgrader(manager)) as client:
        wait_until(lambda: bool(manager.connections))
        assert manager.broadcast("x") and client.receive() == "x"
        assert manager.stats()["backplane"] is None
    time.sleep(0.05)
    assert [record.levelno for record in caplog.records if "this process only" in record.getMessage()] == [
        logging.WARNING] * is_told


def test_a_second_manager_of_a_name_stays_alone(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Process(bus, "twice"), Process(bus, "twice")
    try:
        first.manager.broadcast("x")
        second.manager.broadcast("x")
        wait_until(lambda: "another manager of this process has the name" in caplog.text)
        assert second.line.calls == []
    finally:
        first.manager.shutdown(timeout=1)


def test_a_second_manager_without_a_name_stays_alone(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(exchange, "_unnamed", type(exchange._unnamed)())
    first, second = (ListenableManager(backplane=Line(bus)) for _ in range(2))
    try:
        first.broadcast("x")
        second.broadcast("x")
        wait_until(lambda: "second manager without a name" in caplog.text)
        assert len(bus.lines) == 1
    finally:
        first.shutdown(timeout=1)


def test_without_a_backplane(caplog: pytest.LogCaptureFixture) -> None:
    manager = Manager(backplane=None)
    assert manager.broadcast("x") == (0, 0, 0, 0) and manager.stats()["backplane"] is None and not caplog.records


def test_a_room_of_one_process_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    assert servers.room() is None
    for _ in range(3):
        assert ListenableManager().broadcast("x") == (0, 0, 0, 0)
    time.sleep(0.05)
    assert not caplog.records


# Forks


def test_after_a_fork_nothing_of_the_parent_is_left(pair: Pair) -> None:
    """As in a child, but here."""
    own, other = pair
    other.client("a", "Bob")
    own.manager.broadcast("x")
    wait_until(lambda: own.infos("a") == ["Bob"])
    hub_of(own.manager).reset_after_fork()
    assert own.line.calls[-1] == "reset" and own.infos("a") == []
    own.line.bus.lines.remove(own.line)
    own.manager.broadcast("x")
    wait_until(lambda: own.infos("a") == ["Bob"])


def test_a_child_of_a_fork_begins_anew(pair: Pair) -> None:
    own, other = pair
    own.client("a", "Ada")
    other.client("a", "Bob")
    wait_until(lambda: len(own.infos("a")) == 2)
    pid = os.fork()
    if pid == 0:
        try:
            reset = own.line.calls[-1] == "reset"
            own.manager.broadcast("x")
            started = own.line.calls[-1].startswith("start")
            os._exit(0 if reset and started and own.infos("a") == [] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(own.infos("a")) == 2


def test_a_child_of_a_fork_before_the_start_is_another_publisher_too(bus: Bus) -> None:
    """As with gunicorn --preload: nothing has started in the parent, whose threads may hold any lock."""
    process = Process(bus, "first")
    with process.manager._exchange._start_lock:
        pid = os.fork()
        if pid == 0:
            try:
                process.manager.broadcast("x")
                os._exit(0 if process.line.calls == ["reset", "start first of test_exchange"] else 1)
            finally:
                os._exit(2)
        try:
            wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert process.line.calls == []
