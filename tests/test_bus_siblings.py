"""Who was started after whom."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import wait_until

from wsthread.bus import siblings
from wsthread.bus.siblings import younger_siblings

SOURCE = "from wsthread.bus.siblings import younger_siblings as get\nwhile True: print(*get(), flush=True); input()"


class Child:
    """A process that tells its younger siblings."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SOURCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.hear()

    def hear(self) -> set[int]:
        assert self._process.stdout is not None
        return set(map(int, self._process.stdout.readline().split()))

    def ask(self) -> set[int]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.hear()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        with self._process:
            self.kill()


@pytest.fixture
def start() -> Iterator[Callable[[], Child]]:
    children: list[Child] = []

    def start() -> Child:
        children.append(Child())
        return children[-1]

    yield start
    for child in children:
        child.end()


def test_those_that_began_later(start: Callable[[], Child]) -> None:
    first, second = start(), start()
    assert second.pid in first.ask()
    assert not {first.pid, second.pid} & second.ask()
    third = start()
    assert {second.pid, third.pid} <= first.ask()


def test_one_that_has_ended(start: Callable[[], Child]) -> None:
    """Before its parent has noticed that, too."""
    first, second = start(), start()
    second.kill()
    wait_until(lambda: second.pid not in first.ask())


def test_those_of_this_process_are_not_its_children(start: Callable[[], Child]) -> None:
    child = start()
    assert not {child.pid, os.getpid(), os.getppid()} & younger_siblings()


def test_where_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siblings, "_PROC", tmp_path)
    assert younger_siblings() == set()


def test_children_of_the_same_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is older, one younger, one has ended, and one is a zombie; names may have brackets."""
    monkeypatch.setattr(siblings, "_PROC", tmp_path)
    own, parent = os.getpid(), os.getppid()
    tasks = tmp_path / f"{parent}/task/{parent}"
    tasks.mkdir(parents=True)
    (tasks / "children").write_text(f"{own} 900001 900002 900003 900004 ")
    for pid, state, began in ((own, "S", 100), (900001, "S", 99), (900002, "R", 101), (900004, "Z", 102)):
        (tmp_path / f"{pid}").mkdir(exist_ok=True)
        (tmp_path / f"{pid}/stat").write_text(f"{pid} (a) (b) {state} {' '.join(map(str, range(18)))} {began} 0\n")
    assert younger_siblings() == {900002}
