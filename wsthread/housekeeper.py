"""One thread per process for what a connection's own thread cannot do, because that blocks in its read.

It writes what waits in an outbox as soon as the kernel takes more. It writes what a connection's thread holds back for
too long. It lets each manager look at its deadlines once per tick. It never waits for a peer and never runs code of the
application.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from . import clock
from .locks import taking
from .logs import tell_aside

TICK = 0.25  # Seconds between two looks at the deadlines, unless a manager wants it shorter.
_PATIENCE = 1.0  # Seconds to wait for the end of the thread.
SOON = 0.01  # Seconds until :meth:`Housekeeper.flush_soon` flushes.


class HasDeadlines(Protocol):
    """Something with deadlines."""

    def check(self, now: float) -> None:
        """Do what is due; called about every tick with the time."""


class Housekeeper:
    """A thread that flushes sockets and looks at deadlines. Any thread may call its methods."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Guards everything below; the selector's registrations, not its waiting.
        self._thread: threading.Thread | None = None  # A thread of ours that is no longer this one ends.
        self._tick = TICK
        self._checked: weakref.WeakSet[HasDeadlines] = weakref.WeakSet()
        self._soon: list[Callable[[], None]] = []
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._flush_all_soon)

    def add(self, checked: HasDeadlines, tick: float) -> None:
        """Let something have its deadlines looked at, as long as it exists, and start the thread if need be.

        Args:
            checked: nothing happens when it was added before.
            tick: how often at least, in seconds.

        Raises:
            RuntimeError: the system starts no more threads.
        """
        with taking(self._lock):
            self._checked.add(checked)
            self._tick = min(self._tick, tick)
            if self._thread is not None and self._thread.is_alive():
                return
            has_died = self._thread is not None
            self._thread = threading.Thread(target=self._run, name="wsthread-housekeeper", daemon=True)
            try:
                self._thread.start()
            except BaseException:
                self._thread = None
                raise
        if has_died:
            tell_aside(logging.ERROR, "the housekeeper's thread had died; it was started again")

    def stop(self) -> None:
        """End the thread and wait a moment for that. A later :meth:`add` starts another one."""
        with taking(self._lock):
            self._thread, thread = None, self._thread
        self._wake_write.send(b"\0")
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)

    def watch(self, fd: int, flush: Callable[[], None]) -> None:
        """Call ``flush`` whenever the file descriptor takes bytes, until :meth:`unwatch`."""
        with taking(self._lock):
            try:
                self._selector.register(fd, selectors.EVENT_WRITE, flush)
            except KeyError:  # A signal handler that raised came between this call and its caller, once.
                self._selector.modify(fd, selectors.EVENT_WRITE, flush)

    def unwatch(self, fd: int) -> None:
        """Stop watching; call it before the file descriptor is closed."""
        with taking(self._lock):
            try:
                self._selector.unregister(fd)
            except KeyError:  # Likewise.
                pass

    def flush_soon(self, flush: Callable[[], None]) -> None:
        """Call ``flush`` once, after :data:`SOON`."""
        with taking(self._lock):
            self._soon.append(flush)
            wake = len(self._soon) == 1
        if wake:
            self._wake_write.send(b"\0")

    def close_after_fork(self) -> None:
        """Close the child's copies of what the parent's thread uses."""
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _run(self) -> None:
        next_check = clock.now() + self._tick
        while self._thread is threading.current_thread():
            try:
                for key, _ in self._selector.select(max(0.0, next_check - clock.now())):
                    survive(key.data)
                now = clock.now()
                if now >= next_check:
                    next_check = now + self._tick
                    self._check_all(now)
            except Exception as error:  # Such as a MemoryError.
                tell_aside(logging.ERROR, "error in the housekeeper's thread", error=error)
                time.sleep(SOON)

    def _flush_all_soon(self) -> None:
        time.sleep(SOON)  # Those who ask meanwhile are flushed along.
        with taking(self._lock):
            soon, self._soon = self._soon, []
        for flush in soon:
            survive(flush)
        self._wake_read.recv(1)  # At last, so that whatever fails before is tried again.

    def _check_all(self, now: float) -> None:
        with taking(self._lock):
            checked = list(self._checked)
        for one in checked:
            survive(one.check, now)


def survive(function: Callable[..., None], *args: Any) -> None:
    """Call a function and log what it raises, so that the thread goes on with the next one."""
    try:
        function(*args)
    except Exception as error:  # The thread has to live on; the bug has to be seen.
        tell_aside(logging.ERROR, "error in the housekeeper's thread", error=error)
