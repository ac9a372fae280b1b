"""Two meshes in one process: what they tell each other. Between processes: test_bus_local.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import wait_until

from wsthread.bus import mesh
from wsthread.bus.backplane import Entry, Gap, Listener
from wsthread.bus.mesh import Mesh


class Room:
    """A manager's end of a mesh, and its listener."""

    def __init__(self, publisher: str) -> None:
        self.publisher = publisher
        self.listener: Listener = self
        self.number = self.received = self.gaps = 0
        self.payloads: list[bytes] = []
        self.begun: dict[str, int] = {}
        self.gone: list[str] = []
        self.missed: list[Gap] = []
        self.memory = b""

    def begin(self, publisher: str, number: int) -> None:
        self.begun[publisher] = number

    def remember(self, entry: Entry) -> None:
        raise NotImplementedError

    def recall(self) -> bytes:
        return self.publisher.encode()

    def restore(self, memory: bytes) -> None:
        self.memory = memory

    def deliver(self, entry: Entry) -> None:
        if entry.payload == b"fail":
            raise ValueError("a listener that fails")
        self.payloads.append(entry.payload)

    def note_gap(self, gap: Gap) -> None:
        self.missed.append(gap)

    def note_gone(self, publisher: str) -> None:
        self.gone.append(publisher)


@pytest.fixture
def meshes(tmp_path: Path) -> Iterator[list[Mesh]]:
    """Two that meet, the older one first."""
    both = [Mesh(tmp_path)]
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    both.append(Mesh(tmp_path))
    yield both
    for one in both:
        one.stop()
    assert list(tmp_path.iterdir()) == []


def test_they_meet_and_part(meshes: list[Mesh], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "_PAUSE", 0.0)
    first, second = meshes
    ours, theirs = Room("a"), Room("b")
    assert first.start("chat", ours) and second.start("chat", theirs)
    for payload in (b"one", b"fail", b"two"):
        first.publish("chat", ours, "m", {}, payload)
    wait_until(lambda: theirs.payloads == [b"one", b"two"])
    assert theirs.begun == {"a": 0} and theirs.received == 3 and first.queued() == (0, 1, 0)
    first.end("chat", ours, 1.0)
    wait_until(lambda: theirs.gone == ["a"])
    assert first.start("chat", ours)  # It goes on with its numbers.
    wait_until(lambda: theirs.begun == {"a": 3})


def test_one_asks_the_other_what_it_remembers(meshes: list[Mesh]) -> None:
    first, second = meshes
    ours, theirs = Room("a"), Room("b")
    assert first.start("chat", ours, recalls=True)
    assert ours.memory == b""  # There was nobody.
    assert second.start("chat", theirs, recalls=True)
    assert theirs.memory == b"a"


def test_the_older_one_is_followed_when_the_younger_one_has_had_time_to_ask(
        meshes: list[Mesh], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "younger_siblings", set)
    monkeypatch.setattr(mesh, "_LOOK", 0.001)
    looks: list[bool] = []
    original = Mesh._awaits_follower

    def look(self: Mesh, name: str) -> bool:
        looks.append(original(self, name))
        return looks[-1]

    monkeypatch.setattr(Mesh, "_awaits_follower", look)
    first, second = meshes
    ours, theirs = Room("a"), Room("b")
    assert first.start("chat", ours) and second.start("chat", theirs)
    first.wait_for_follower("chat", 10.0)
    assert looks[0] and not looks[-1]
    looks.clear()
    second.wait_for_follower("chat", 10.0)
    assert looks == [False]


@pytest.mark.parametrize(("siblings", "waits"), [((), False), ((1,), True)])
def test_one_that_is_alone_waits_for_a_sibling_that_it_does_not_know(
        meshes: list[Mesh], monkeypatch: pytest.MonkeyPatch, siblings: tuple[int, ...], waits: bool) -> None:
    monkeypatch.setattr(mesh, "_LOOK", 0.001)
    looks: list[None] = []

    def younger_siblings() -> set[int]:
        looks.append(None)
        return set(siblings)

    monkeypatch.setattr(mesh, "younger_siblings", younger_siblings)
    meshes[0].start("chat", Room("a"))
    meshes[0].wait_for_follower("chat", 0.1)
    assert (len(looks) > 1) == waits
