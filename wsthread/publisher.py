"""Messages from processes that have no connections: Celery tasks, cron jobs, management commands.

A :class:`Publisher` waits until Redis has what it publishes, for a queue in the background would die with the task. It
tries again when something fails, with the same number, so that nothing comes twice. When its time is over it gives up:
then an entry in its place takes the number, so that it cannot come later.

Readers know the numbers of a publisher by its id. The server forgets publishers that are silent for long, so one that
publishes again after that takes another id. So does the child of a fork: with the same id its messages would pass for
the parent's.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from . import entries
from .bus.backplane import new_publisher
from .bus.fields import encode_header
from .bus.publishing import Bounds, Outgoing
from .bus.redis_store import Address, Store
from .exceptions import BackplaneFull
from .locks import taking
from .wire.messages import Payload
from .wire.protocol import check_close

_KEPT = Bounds(waiting=1 << 30, waiting_size=1 << 40, kept=1000, kept_size=16 << 20, kept_time=3600.0)
_BATCH = 200  # Entries that leave together.
_BATCH_SIZE = 1 << 20  # Bytes.
_PAUSE = 0.02  # Seconds before a second try; then twice as long, and so on,
_LONGEST_PAUSE = 0.5  # up to this.


class Publisher:
    """Publishes to the managers of a name that have a :class:`wsthread.bus.redis.RedisBackplane`.

    It connects when something is published, and serves as a context manager that calls :meth:`stop` in the end. Any
    thread may call anything, and a child of a fork may go on using it: it is another publisher then.

    Args:
        url: as for :class:`wsthread.bus.redis.RedisBackplane`.
        name: the managers'. Default ``"default"``.
        timeout: seconds that a call may take. Default 5.
        max_entry_size: bytes of a message. Default 1 MiB, which is what the managers take.
        stream_length: as for the backplane, and of the same value.
        stream_seconds: likewise.
        **options: for redis-py's connections.

    A signal handler that has interrupted it in the same thread gets a RuntimeError.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: a value makes no sense.
    """

    def __init__(
        self, url: str, name: str = "default", timeout: float = 5.0, *, max_entry_size: int = 1 << 20,
        stream_length: int = 10_000, stream_seconds: int = 3_600, **options: Any,
    ) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout!r}, it must be greater than 0")
        self._address = Address(url, options)
        self._name = name
        self._timeout = timeout
        self._max_entry_size = max_entry_size
        self._stream = (stream_length, stream_seconds)
        self._store: Store | None = None
        self._begin()
        _publishers.add(self)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Publisher {self._address.label} {self._name!r}>"

    def broadcast(self, payload: Payload, to: str | Iterable[str] | None = None) -> None:
        """Send a message to connections in all processes, and return when Redis has it.

        Args:
            payload: text or bytes.
            to: names of groups; None for all connections.

        Raises:
            TypeError: something that is no payload, or no name.
            BackplaneFull: it is too large.
            TimeoutError: Redis did not take it in time. It may have been delivered; if not, it never will be.
        """
        if not isinstance(payload, (str, bytes, bytearray, memoryview)):
            raise TypeError(f"a message is text or bytes, not {type(payload).__name__}")
        self._publish(entries.message(payload, entries.Addressed(entries.named(to))))

    def close(self, to: str | Iterable[str] | None = None, code: int = 1000, reason: str = "") -> None:
        """Close connections in all processes; :meth:`stop` is what ends the publisher.

        Args:
            to: names of groups; None for all connections.
            code: the close code (RFC 6455 7.4).
            reason: the close reason, at most 123 bytes of UTF-8.

        Raises:
            TypeError: something that is no name; the code is no int or the reason no str.
            ValueError: the code may not be sent or the reason is too long.
            BackplaneFull: as for :meth:`broadcast`.
            TimeoutError: likewise.
        """
        self._publish(entries.close(check_close(code, reason), entries.Addressed(entries.named(to))))

    def notify(self, data: Any) -> None:
        """Give data to the ``on_notify`` of the managers in all processes.

        Args:
            data: what JSON knows.

        Raises:
            TypeError: the data has no JSON.
            ValueError: likewise.
            BackplaneFull: as for :meth:`broadcast`.
            TimeoutError: likewise.
        """
        self._publish(entries.notice(data))

    def stop(self) -> None:
        """Close the connection. It may be called twice; a later call of another method opens another one."""
        with taking(self._lock):
            self._disconnect()

    def reset_after_fork(self) -> None:
        """Be another publisher. Only the forking thread runs, so it takes no lock."""
        self._disconnect()
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()  # Guards everything; it is held while Redis is asked.
        self._renew()

    def _renew(self) -> None:
        self._publisher = new_publisher()
        self._outgoing = Outgoing(_KEPT)
        self._heard = time.monotonic()  # When the server answered for the last time.

    def _disconnect(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _publish(self, entry: entries.Outgoing) -> None:
        header = encode_header(entry.header)
        size = len(header) + len(entry.payload)
        if size > self._max_entry_size:
            raise BackplaneFull(f"the message has {size} bytes, at most {self._max_entry_size} are allowed")
        end = time.monotonic() + self._timeout
        if not taking(self._lock).acquire(timeout=self._timeout):
            raise TimeoutError(f"{self!r}: other threads took all of {self._timeout} s")
        try:
            now = time.monotonic()
            if now - self._heard > self._stream[1] / 2:  # Nobody may know our numbers any more.
                self._renew()
            number = self._outgoing.add(entry.kind, header, entry.payload, now, time.time())
            try:
                self._send(end)
            except BaseException:
                self._outgoing.withdraw(number)
                raise
        finally:
            self._lock.release()

    def _send(self, end: float) -> None:
        """Let the server have all that waits.

        Raises:
            TimeoutError: it is not there, or does not want it.
        """
        pause = _PAUSE
        while self._outgoing.is_due:
            try:
                if self._store is None:
                    self._store = Store(self._address, self._name, self._timeout)
                self._store.timeout = max(0.01, min(self._timeout / 2, end - time.monotonic()))
                batch = self._outgoing.batch(_BATCH, _BATCH_SIZE)
                answer = self._store.publish(self._publisher, batch, *self._stream, time.monotonic())
            except Exception as error:  # Of the server, the network or redis-py.
                left = end - time.monotonic()
                if left <= 0:
                    text = self._address.hide_password(str(error) or type(error).__name__)
                    raise TimeoutError(f"{self!r}: not taken within {self._timeout} s: {text}") from None
                time.sleep(min(left, random.uniform(0.0, pause)))
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._heard = time.monotonic()
                self._outgoing.confirm(answer.have, self._heard)


_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()


def _reset_all() -> None:
    for publisher in list(_publishers):
        publisher.reset_after_fork()


os.register_at_fork(after_in_child=_reset_all)
