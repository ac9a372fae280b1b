"""The local bus between real processes: nothing lost, nothing doubled, and what happens to those who stop or die."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import wait_until

from wsthread import BackplaneFull, servers
from wsthread.bus import local, mesh
from wsthread.bus.backplane import BackplaneUnavailable, Entry, Gap, NotNeeded
from wsthread.bus.local import LocalBackplane
from wsthread.bus.mesh import Mesh
from wsthread.bus.parcels import Kind, pack

PROGRAM = Path(__file__).with_name("bus_process.py")


class Process:
    """A process on the bus; see bus_process.py."""

    def __init__(self, room: str, name: str, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), room, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TMPDIR": str(directory)})
        self.pid = self._process.pid

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def ask(self, line: str) -> dict[str, Any]:
        self.tell(line)
        return self.hear()

    def stats(self) -> dict[str, Any]:
        return self.ask("stats")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes = []

    def start(name: str = "chat", room: str = "8000", wait: bool = True) -> Process:
        process = Process(room, name, tmp_path)
        processes.append(process)
        if wait:
            process.started = process.hear()  # type: ignore[attr-defined]
        return process

    yield start
    for process in processes:
        process.end()


def files(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.rglob("*") if not path.is_dir()]


def received(process: Process) -> int:
    return sum(process.stats()["counts"].values())


def test_each_gets_what_the_others_publish(start: Start, tmp_path: Path) -> None:
    processes = [start() for _ in range(4)]
    for process in processes:
        process.tell("publish 2000 200")
    for process in processes:
        process.hear()
    for process in processes:
        wait_until(lambda: received(process) == 6000)
        stats = process.stats()
        assert sorted(stats["counts"].values()) == [2000] * 3 and stats["disorder"] == stats["gaps"] == 0
        assert stats["health"]["healthy"] and stats["health"]["peers"] == 3
        assert (stats["health"]["published"], stats["health"]["received"]) == (2000, 6000)
    assert len(files(tmp_path)) == 4
    for process in processes:
        process.ask("close")
    assert files(tmp_path) == []


def test_many_start_at_once(start: Start) -> None:
    """Nobody has to go first, and each waits until it would miss nothing."""
    processes = [start(wait=False) for _ in range(12)]
    began = [process.hear() for process in processes]
    assert max(one["took"] for one in began) < 0.9
    for process in processes:
        process.ask("publish 10 20")
    for process in processes:
        wait_until(lambda: received(process) == 110)


def test_who_comes_later_knows_where_the_others_are(start: Start) -> None:
    first = start()
    first.ask("publish 5 1")
    second = start()
    publisher = first.started["publisher"]  # type: ignore[attr-defined]
    assert second.stats()["begun"] == {publisher: 5}
    first.ask("publish 1 1")
    wait_until(lambda: received(second) == 1)
    assert second.stats()["disorder"] == 0


def test_names_and_rooms_are_apart(start: Start) -> None:
    chat, another, elsewhere = start("chat"), start("another"), start("chat", room="9000")
    chat.ask("publish 5 1")
    third = start("chat")
    chat.ask("publish 5 1")
    wait_until(lambda: received(third) == 5)
    assert received(another) == received(elsewhere) == 0


def test_who_is_killed_is_gone_at_once(start: Start, tmp_path: Path) -> None:
    first, second = start(), start()
    second.signal(signal.SIGKILL)
    publisher = second.started["publisher"]  # type: ignore[attr-defined]
    wait_until(lambda: first.stats()["gone"] == [publisher])
    wait_until(lambda: len(files(tmp_path)) == 1)
    assert first.stats()["health"]["peers"] == 0
    third = start()
    third.ask("publish 1 1")
    wait_until(lambda: received(first) == 1)


def test_who_closes_is_gone_and_may_come_back(start: Start, tmp_path: Path) -> None:
    first, second = start(), start()
    before = second.stats()["descriptors"]
    for _ in range(10):
        second.ask("close")
        wait_until(lambda: len(files(tmp_path)) == 1)
        second.ask("start")
        first.ask("publish 1 1")
    assert second.stats()["descriptors"] <= before
    wait_until(lambda: received(second) == 10)
    wait_until(lambda: len(first.stats()["gone"]) == 10)


def test_who_comes_later_asks_the_one_that_was_there_first(start: Start) -> None:
    first, second, third = start(), start(), start()
    assert third.stats()["restored"] is None
    second.ask("publish 5 1")
    wait_until(lambda: received(first) == 5)
    third.ask("close")
    third.ask("start history")
    publisher = second.started["publisher"]  # type: ignore[attr-defined]
    assert third.stats()["restored"] == {publisher: 5}
    first.ask("publish 1 1")
    wait_until(lambda: received(third) == 6)


def test_the_one_that_is_asked_dies_and_the_next_one_answers(start: Start) -> None:
    first, second, third = [start() for _ in range(3)]
    first.ask("publish 3 10")
    wait_until(lambda: sum(second.stats()["counts"].values()) == 3)
    third.ask("close")
    first.ask("mortal")
    third.ask("start history")
    assert third.stats()["restored"] == second.stats()["counts"]


def test_who_ends_waits_for_one_that_was_just_started(start: Start) -> None:
    """As at a reload: all end, and the new ones are not there yet."""
    first, second = start(), start()
    for one in (first, second):
        one.ask("close")
        one.ask("start history")
    first.ask("publish 5 1")
    wait_until(lambda: received(second) == 5)
    third = start(wait=False)
    second.tell("close")
    first.ask("close")
    publisher = first.started["publisher"]  # type: ignore[attr-defined]
    third.hear()
    third.ask("close")
    third.ask("start history")
    assert third.stats()["restored"] == {publisher: 5}
    second.hear()


def test_nobody_remembers_anything(start: Start) -> None:
    alone = start()
    alone.ask("close")
    alone.ask("start history")
    assert alone.stats()["restored"] is None


@pytest.mark.slow
def test_a_stopped_process_makes_nobody_wait_and_learns_what_it_missed(start: Start) -> None:
    first, second, stopped = start(), start(), start()
    stopped.signal(signal.SIGSTOP)
    slowest = first.ask("publish 3000 50000 0.001")["slowest"]  # 150 MB.
    wait_until(lambda: received(second) == 3000)
    stats = first.stats()
    assert slowest < 0.5 and stats["rss"] < 150 << 20 and not stats["health"]["healthy"]
    second.ask("publish 1 1")
    stopped.signal(signal.SIGCONT)
    wait_until(lambda: received(stopped) + stopped.stats()["gaps"] == 3001)
    stats = stopped.stats()
    assert stats["gaps"] > 1000 and stats["disorder"] == 0
    wait_until(lambda: first.stats()["health"]["healthy"])
    first.ask("publish 1 1")
    wait_until(lambda: received(stopped) + stopped.stats()["gaps"] == 3002)


def test_one_that_is_stopped_for_a_moment_misses_nothing(start: Start) -> None:
    first, stopped = start(), start()
    stopped.signal(signal.SIGSTOP)
    first.ask("publish 300 20000")
    late = start()  # It waits for the stopped one, for a second at most.
    assert late.started["took"] < 3  # type: ignore[attr-defined]
    late.ask("publish 1 1")
    stopped.signal(signal.SIGCONT)
    wait_until(lambda: received(stopped) == 301)
    stopped.ask("publish 1 1")
    wait_until(lambda: received(late) == 1)


def test_a_child_of_a_fork_is_another_process(start: Start) -> None:
    first, second = start(), start()
    assert first.ask("fork") == {"status": 0}
    wait_until(lambda: received(second) == 1 and received(first) == 1)
    first.ask("publish 1 1")
    wait_until(lambda: received(second) == 2)
    assert second.stats()["disorder"] == 0


def test_a_listener_that_fails_ends_nothing(start: Start) -> None:
    first, second = start(), start()
    first.ask("fail")
    first.ask("publish 1 1")
    wait_until(lambda: received(second) == 1)


def test_an_idle_bus_costs_nothing(start: Start) -> None:
    first, _ = start(), start()
    before = first.stats()["cpu"]
    time.sleep(1)
    assert first.stats()["cpu"] - before < 0.02
    assert len(os.listdir(f"/proc/{first.pid}/task")) == 2


# In this process


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.gaps: list[Gap] = []
        self.gone: list[str] = []
        self.begun: dict[str, int] = {}

    def begin(self, publisher: str, number: int) -> None:
        self.begun[publisher] = number

    def remember(self, entry: Entry) -> None:
        raise NotImplementedError

    def recall(self) -> bytes:
        raise NotImplementedError

    def restore(self, memory: bytes) -> None:
        raise NotImplementedError

    def deliver(self, entry: Entry) -> None:
        self.entries.append(entry)

    def note_gap(self, gap: Gap) -> None:
        self.gaps.append(gap)

    def note_gone(self, publisher: str) -> None:
        self.gone.append(publisher)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_without_a_room_it_is_not_needed() -> None:
    backplane = LocalBackplane()
    with pytest.raises(NotNeeded):
        backplane.start("chat", Heard())
    assert backplane.publish("x", {}) == 0
    backplane.close(1)


def test_the_room_is_the_servers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "room", lambda: ("8000",))
    backplane = LocalBackplane()
    backplane.start("chat", Heard())
    assert len(files(place)) == 1 and backplane.health().healthy
    backplane.close(1)
    assert files(place) == [] and not backplane.health().healthy


def test_several_managers_share_a_mesh(place: Path) -> None:
    heard = Heard()
    before = threading.active_count()
    first, second = LocalBackplane(["8000"]), LocalBackplane(["8000"])
    first.start("chat", heard)
    second.start("news", heard)
    assert threading.active_count() == before + 1 and len(files(place)) == 1
    first.close(1)
    assert len(files(place)) == 1
    second.close(1)
    assert threading.active_count() == before and files(place) == [] and heard.entries == []


def test_a_start_that_a_listener_holds_up(
        start: Start, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Slow(Heard):
        def deliver(self, entry: Entry) -> None:
            begun.set()
            go_on.wait(10)

    begun, go_on = threading.Event(), threading.Event()
    other = start("chat")
    first, second = LocalBackplane(["8000"]), LocalBackplane(["8000"])
    first.start("chat", Slow())
    other.ask("publish 1 10")
    assert begun.wait(10)
    monkeypatch.setattr(mesh, "_MEETING", 0.05)
    second.start("news", Heard())
    go_on.set()
    wait_until(lambda: "what they send may have been missed" in caplog.text)
    second.close(1)
    first.close(1)


def test_a_directory_that_is_not_ours(place: Path) -> None:
    (place / f"wsthread-{os.geteuid()}").mkdir(0o755)
    with pytest.raises(BackplaneUnavailable, match="others may enter"):
        LocalBackplane(["8000"]).start("chat", Heard())


def test_an_entry_that_is_too_large(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MOST_PAYLOAD", 10)
    backplane = LocalBackplane(["8000"])
    backplane.start("chat", Heard())
    with pytest.raises(BackplaneFull):
        backplane.publish("x", {}, bytes(11))
    assert backplane.publish("x", {}, bytes(10)) == 1
    backplane.close(1)


@pytest.mark.parametrize("garbage", [
    b"GET / HTTP/1.1\r\n\r\n", pack(Kind.HELLO, {}), pack(Kind.HELLO, {"id": 5, "names": {}}),
    pack(Kind.HELLO, {"id": "1-a", "names": []}),
    pack(Kind.HELLO, {"id": "1-a", "names": {"chat": ["p"]}}), pack(Kind.ENTRY, {"publisher": "p"}),
    pack(Kind.GAP, {"publisher": "p", "missing": "x", "name": "chat"}), pack(Kind.NAME, {"name": ["chat"]})])
def test_garbage_ends_its_connection_only(start: Start, place: Path, garbage: bytes) -> None:
    process = start()
    path, = (path for path in place.rglob("*") if path.is_socket())
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        peer.sendall(garbage)
        peer.settimeout(5)
        assert peer.recv(1) == b""
    heard, backplane = Heard(), LocalBackplane(["8000"])
    backplane.start("chat", heard)
    process.ask("publish 1 1")
    wait_until(lambda: len(heard.entries) == 1)
    backplane.close(1)


def test_a_connection_that_breaks_is_made_again_and_the_loss_is_told(start: Start, place: Path) -> None:
    process, heard, backplane = start(), Heard(), LocalBackplane(["8000"])
    backplane.start("chat", heard)
    process.ask("publish 2 1")
    wait_until(lambda: len(heard.entries) == 2)
    own = next(iter(local._meshes.values()))
    process.signal(signal.SIGSTOP)
    for inflow in list(own._inflows.values()):
        inflow.socket.shutdown(2)
    wait_until(lambda: len(heard.gone) == 1)
    process.tell("publish 3 1")
    process.signal(signal.SIGCONT)
    process.hear()
    wait_until(lambda: process.stats()["health"]["peers"] == 1)
    process.ask("publish 1 1")
    wait_until(lambda: len(heard.entries) + sum(gap.missing or 0 for gap in heard.gaps) == 6)
    backplane.close(1)


def test_it_survives_errors_of_its_own(
    start: Start, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    process, heard, backplane = start(), Heard(), LocalBackplane(["8000"])
    backplane.start("chat", heard)
    own = next(iter(local._meshes.values()))

    def fail() -> None:
        raise MemoryError("injected")

    for broken in ("_watch_peers", "_accept"):
        monkeypatch.setattr(own, broken, fail)
        process.ask("publish 1 1")
        time.sleep(0.1)
        monkeypatch.undo()
        monkeypatch.setattr(tempfile, "tempdir", str(place))
    wait_until(lambda: len(heard.entries) == 2)
    assert "error in the thread of the local backplane" in caplog.text
    backplane.close(1)


def no_more_descriptors(*args: object) -> None:
    raise OSError(errno.EMFILE, "too many open files")


@pytest.mark.parametrize("broken", [
    "socket.socketpair", "selectors.DefaultSelector", "wsthread.bus.mesh.listen"])
def test_without_a_descriptor_there_is_none(place: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(broken, no_more_descriptors)
    with pytest.raises(OSError):
        LocalBackplane(["8000"]).start("chat", Heard())
    assert files(place) == [] and len(os.listdir("/proc/self/fd")) == before


def test_a_process_that_could_not_be_reached_is_tried_again(
    start: Start, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    process, heard, backplane = start(), Heard(), LocalBackplane(["8000"])
    with monkeypatch.context() as context:
        context.setattr(mesh, "connect", no_more_descriptors)
        backplane.start("chat", heard)
        assert backplane.health().peers == 0
    wait_until(lambda: backplane.health().peers == 1)
    backplane.publish("x", {"at": time.time()})
    wait_until(lambda: received(process) == 1)
    assert caplog.text.count("no connection yet") == 1
    backplane.close(1)


def test_a_process_that_could_not_be_accepted_is_accepted_later(
    start: Start, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    class Full:
        def __getattr__(self, name: str) -> Any:
            return no_more_descriptors if name == "accept" else getattr(sock, name)

    heard, backplane = Heard(), LocalBackplane(["8000"])
    backplane.start("chat", heard)
    own = next(iter(local._meshes.values()))
    sock = own._socket
    tries: list[object] = []

    def accept() -> None:
        tries.append(0)
        mesh.Mesh._accept(own)

    monkeypatch.setattr(own, "_accept", accept)
    own._selector.modify(sock, 1, own._accept)
    with monkeypatch.context() as context:
        context.setattr(own, "_socket", Full())
        process = start()
    process.ask("publish 1 1")
    wait_until(lambda: len(heard.entries) == 1)
    assert len(tries) < 10 and caplog.text.count("takes no connection at the moment") == 1
    backplane.close(1)


def test_the_end_is_seen_though_a_child_has_copies(start: Start, place: Path) -> None:
    """Of a fork that Python does not know of, as a library in C may do."""
    process, backplane = start(), LocalBackplane(["8000"])
    backplane.start("chat", Heard())
    own = next(iter(local._meshes.values()))
    wait_until(lambda: process.stats()["health"]["peers"] == 1)
    copies = [os.dup(sock.fileno()) for sock in own._sockets()]
    backplane.close(1)
    wait_until(lambda: process.stats()["health"]["peers"] == 0)
    for copy in copies:
        os.close(copy)


def test_without_a_thread_there_is_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        LocalBackplane(["8000"]).start("chat", Heard())
    assert files(place) == [] and len(os.listdir("/proc/self/fd")) == before


def test_the_childs_copies_are_closed(place: Path) -> None:
    """As in a child of a fork, but here."""
    before = len(os.listdir("/proc/self/fd"))
    backplane = LocalBackplane(["8000"])
    publisher = backplane.publisher
    backplane.start("chat", Heard())
    parents = next(iter(local._meshes.values()))
    parents._is_stopped = True  # Its thread would not run in a child.
    parents._wake()
    wait_until(lambda: not parents.is_alive)
    backplane.reset_after_fork()
    assert len(os.listdir("/proc/self/fd")) == before and local._meshes == {} and backplane.publisher != publisher


def test_workers_that_cannot_find_each_other_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "processes", lambda: 4)
    with pytest.raises(BackplaneUnavailable, match="4 workers serve") as caught:
        LocalBackplane().start("chat", Heard())
    assert not isinstance(caught.value, NotNeeded)


def test_one_that_starts_while_the_last_one_closes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a mesh that lives on, instead of one that ends under it."""
    first, second = LocalBackplane(["8000"]), LocalBackplane(["8000"])
    first.start("chat", Heard())
    start = Mesh.start

    def start_late(*args: Any, **options: Any) -> bool:
        first.close(1)
        return start(*args, **options)

    monkeypatch.setattr(Mesh, "start", start_late)
    second.start("news", Heard())
    assert second.health().healthy
    second.close(1)
    assert files(place) == []
