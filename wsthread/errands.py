"""A thread that does one thing after another, as long as there is something to do.

It is for what may take long and must not keep the caller: the caller holds a lock, or has others to serve.
"""

from __future__ import annotations

import _thread
import logging
import queue
import threading
from collections.abc import Callable

from .logs import tell_aside


class Errands:
    """What one thread has to do, in its order. Any thread may add to it, with a lock or without, and waits for nothing.

    Args:
        name: the thread's.
        limit: how many may wait. More are not taken.
    """

    def __init__(self, name: str, limit: int = 100_000) -> None:
        self._name = name
        self._limit = limit
        self._waiting: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._runs = threading.Lock()  # Held as long as there is the thread, or somebody is about to start it.

    def add(self, errand: Callable[[], object]) -> bool:
        """Let the thread call a function; return whether it will."""
        if self._waiting.qsize() >= self._limit:
            return False
        self._waiting.put(errand)
        if self._runs.acquire(blocking=False):
            try:
                _thread.start_new_thread(self._start, ())
            except BaseException:  # The system starts no more threads. The next call of add() tries again.
                self._runs.release()
        return True

    def _start(self) -> None:
        # In a thread of its own, for it waits until the new thread runs. What the collector finds there may want a lock
        # that the caller of add() holds.
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except BaseException:
            self._runs.release()

    def _run(self) -> None:
        while True:
            while not self._waiting.empty():
                self._do(self._waiting.get_nowait())  # Nobody else takes any.
            self._runs.release()
            if self._waiting.empty() or not self._runs.acquire(blocking=False):
                return

    def _do(self, errand: Callable[[], object]) -> None:
        try:
            errand()
        except BaseException as error:
            tell_aside(logging.ERROR, "error in the thread %s", self._name, error=error)
