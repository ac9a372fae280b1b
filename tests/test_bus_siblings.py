"""Who was started after whom."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from servers import wait_until

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
