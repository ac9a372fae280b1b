"""One thing after another, in a thread that is there as long as it is needed."""

from __future__ import annotations

import threading

import pytest
from servers import wait_until

from wsthread.errands import Errands


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_order_and_end() -> None:
    errands, done = Errands("order"), []
    for number in range(1000):
        assert errands.add(lambda number=number: done.append(number))  # type: ignore[misc]
    wait_until(lambda: len(done) == 1000)
    assert done == list(range(1000))
    wait_until(lambda: not threads("order"))
    errands.add(lambda: done.append(1000))
    wait_until(lambda: len(done) == 1001)


def test_many_threads_add() -> None:
    errands, done = Errands("many"), []
    adding = [
        threading.Thread(target=lambda: [errands.add(lambda: done.append(1)) for _ in range(500)]) for _ in range(8)]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()
    wait_until(lambda: len(done) == 4000)


@pytest.mark.parametrize("error", [ValueError("why"), SystemExit(1), MemoryError()])
def test_an_error_does_not_end_it(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    errands, done = Errands("error"), []

    def fail() -> None:
        raise error

    errands.add(fail)
    errands.add(lambda: done.append(1))
    wait_until(lambda: done == [1])
    wait_until(lambda: "error in the thread error" in caplog.text)


def test_no_more_than_the_limit() -> None:
    errands, going, done = Errands("limit", limit=3), threading.Event(), []
    errands.add(going.wait)
    wait_until(lambda: errands.add(lambda: done.append(1)))
    taken = sum(errands.add(lambda: done.append(1)) for _ in range(5))
    assert taken <= 3
    going.set()
    wait_until(lambda: len(done) == 1 + taken)


def test_without_a_thread_it_waits_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    errands, done, refused = Errands("none"), [], threading.Event()

    def refuse(thread: threading.Thread) -> None:
        refused.set()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert errands.add(lambda: done.append(1))
    assert refused.wait(10)
    monkeypatch.undo()
    wait_until(lambda: errands.add(lambda: None) and len(done) == 1)
