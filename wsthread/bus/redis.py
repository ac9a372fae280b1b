"""Managers on several hosts as one room, over a stream of Redis or Valkey.

Two threads per manager and process, each with a connection of its own:

* The publisher's thread takes what :meth:`RedisBackplane.publish` has put into a bounded queue and adds it to the
  stream. When there is nothing, it shows every second that this process is there. What makes it safe to send something
  again, and necessary, is in :mod:`wsthread.bus.publishing`.
* The reader's thread takes what stands behind its place and calls the listener. What it makes of it is in
  :mod:`wsthread.bus.reading`.

An error of any kind makes a thread close its connection, wait a moment and go on where it was; nothing ends it before
:meth:`RedisBackplane.close`. The waits grow from 20 ms to a second, and are random, so that not all processes come
back at once. The lock is held for no longer than a look at the queue, never while a server or a listener is asked.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from ..exceptions import BackplaneFull
from ..locks import taking
from ..logs import tell_aside
from .backplane import Backplane, BackplaneUnavailable, Entry, Gap, Health, Listener, new_publisher
from .fields import Arrived, Unreadable, decode, encode_header, id_before
from .publishing import Bounds, Outgoing
from .reading import Begin, Deliver, Event, Missed, Reading, Remember, next_count, place_of
from .redis_store import Address, Answer, Raw, Store, View

BLOCK = 1.0  # Seconds that a read waits for an entry.
HEARTBEAT = 1.0  # Seconds between two signs of life of a publisher.
BATCH = 200  # Entries that leave together,
BATCH_SIZE = 1 << 20  # and their bytes, unless it is one.
START_WAIT = 1.0  # Seconds that a start waits for the server.
_FIRST_COUNT = 16  # Entries that the first read asks for.
_FORGET_EVERY = 600.0  # Seconds.
_HISTORY_SIZE = 16 << 20  # Bytes.


class RedisBackplane(Backplane):
    """A manager's way to the other processes over Redis 6.2 or later, or Valkey; needs redis-py 5 or later.

    Give each manager one of its own: ``Manager(name="chat", backplane=RedisBackplane("redis://localhost"))``. Nothing
    is connected before the manager's first connection or broadcast. Any thread may call anything here.

    Args:
        url: ``redis://[[user]:password@]host[:6379][/database]``, ``rediss://`` with TLS, ``unix://path``,
            ``redis+sentinel://host[:26379],host.../service[/database]`` or ``redis+cluster://host[:6379],host...``. It
            may have options of redis-py behind a ``?``, and ``sentinel_username`` and ``sentinel_password``.
        timeout: seconds that the server may take to answer. Default 3.
        max_waiting: entries that may wait to leave. Default 10,000.
        max_waiting_size: bytes of memory that they may take. Default 16 MiB.
        when_full: what :meth:`publish` does when more would wait: ``"raise"`` BackplaneFull, or ``"drop"`` the entry
            and count it; the other processes are told of a gap then. Default ``"raise"``.
        max_entry_size: bytes of an entry. A larger one is refused with BackplaneFull, and skipped, as a gap, when it
            comes from another process. Default 1 MiB.
        max_kept: entries that are sent again when the server has lost them, the last ones. Default 5,000.
        max_kept_size: bytes of memory that they may take. Default 16 MiB.
        stream_length: entries that the stream holds, about. Default 10,000.
        stream_seconds: how long it holds them, about. Default 3,600.
        **options: for redis-py's connections, such as ``ssl_ca_certs`` or ``credential_provider``.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: a value makes no sense.
    """

    def __init__(
        self, url: str, *, timeout: float = 3.0, max_waiting: int = 10_000, max_waiting_size: int = 16 << 20,
        when_full: Literal["raise", "drop"] = "raise", max_entry_size: int = 1 << 20, max_kept: int = 5_000,
        max_kept_size: int = 16 << 20, stream_length: int = 10_000, stream_seconds: int = 3_600, **options: Any,
    ) -> None:
        super().__init__()
        for name, value, least in (
                ("timeout", timeout, 0.1), ("max_waiting", max_waiting, 1), ("max_waiting_size", max_waiting_size, 1),
                ("max_entry_size", max_entry_size, 1), ("max_kept", max_kept, 0), ("max_kept_size", max_kept_size, 0),
                ("stream_length", stream_length, 1), ("stream_seconds", stream_seconds, 1)):
            if value < least:
                raise ValueError(f"{name} is {value!r}, it must be at least {least}")
        if when_full not in ("raise", "drop"):
            raise ValueError(f'when_full is {when_full!r}, it must be "raise" or "drop"')
        self._address = Address(url, options)
        self._timeout = timeout
        self._bounds = Bounds(max_waiting, max_waiting_size, max_kept, max_kept_size, stream_seconds)
        self._max_entry_size = max_entry_size
        self._drops = when_full == "drop"
        self._stream = (stream_length, stream_seconds)
        self._lock = threading.Lock()  # Guards the state, but for what belongs to one thread.
        self._state = _State(self._lock, self._bounds)

    def __repr__(self) -> str:
        return f"<RedisBackplane {self._address.label}>"

    def start(self, name: str, listener: Listener, history: int = 0) -> None:
        state = self._state
        state.name = f"backplane {self._address.label} of {name!r}"
        stores = Store(self._address, name, self._timeout), Store(self._address, name, self._timeout)
        state.stores += stores
        reader = _Reader(
            state, stores[0], listener, self.publisher, history, self._max_entry_size, self._timeout,
            self._address.hide_password)
        publisher = _Sender(state, stores[1], self.publisher, self._stream, self._address.hide_password)
        for run, what in ((reader.run, "reader"), (publisher.run, "publisher")):
            thread = threading.Thread(target=run, name=f"wsthread-redis-{what}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                state.end()
                raise BackplaneUnavailable("the system starts no more threads") from None
            state.threads.append(thread)
        state.is_placed.wait(START_WAIT)

    def publish(self, kind: str, header: dict[str, Any], payload: bytes = b"") -> int:
        text = encode_header(header)
        size = len(text) + len(payload)
        if size > self._max_entry_size:
            raise BackplaneFull(
                f"the message has {size} bytes, {self._max_entry_size} may go to other processes (max_entry_size)")
        state = self._state
        with taking(self._lock):
            if state.is_ended:
                raise BackplaneFull("the backplane is closed")
            now, wall = time.monotonic(), time.time()
            try:
                number = state.outgoing.add(kind, text, payload, now, wall)
            except BackplaneFull:
                if not self._drops:
                    raise
                number = state.outgoing.drop(now, wall)
            state.work.notify()
        return number

    def health(self) -> Health:
        state = self._state
        with taking(self._lock):
            errors = [one for one in state.errors.values() if one is not None]
            outgoing = state.outgoing
            return Health(
                healthy=not errors, since=state.since, lag=state.lag, queued=outgoing.waiting,
                published=outgoing.published, received=state.received, dropped=state.dropped + outgoing.dropped,
                resent=outgoing.resent, gaps=state.gaps, peers=state.peers, error=errors[0] if errors else None)

    def close(self, timeout: float) -> None:
        state = self._state
        end = time.monotonic() + timeout
        with taking(self._lock):
            state.is_closing = True
            state.work.notify()
        for thread in state.threads[1:]:  # The publisher's.
            thread.join(max(0.0, end - time.monotonic()))
        state.end()
        for thread in state.threads:
            thread.join(max(0.0, min(end, time.monotonic() + BLOCK) - time.monotonic()))

    def reset_after_fork(self) -> None:
        for store in self._state.stores:
            store.close()
        self.publisher = new_publisher()
        self._lock = threading.Lock()
        self._state = _State(self._lock, self._bounds)


class _State:
    """What both threads and their callers share; it is another one in the child of a fork.

    Attributes:
        name: what log lines call the backplane.
        outgoing: what has to leave.
        work: notified when there is something to do for the publisher's thread.
        is_closing: whether what waits is the last.
        is_ended: whether the threads have to end.
        is_placed: set when the reader knows its place.
        errors: what is wrong with each thread's connection; None for nothing.
        since: when there were errors for the first time, or none any more, in seconds since the epoch.
    """

    def __init__(self, lock: threading.Lock, bounds: Bounds) -> None:
        self.name = ""
        self.outgoing = Outgoing(bounds)
        self.work = threading.Condition(lock)
        self.is_closing = self.is_ended = False
        self.is_placed = threading.Event()
        self.errors: dict[str, str | None] = {"read": "it is not connected yet", "publish": "it is not connected yet"}
        self.since = time.time()
        self.lag: float | None = None
        self.received = self.dropped = self.gaps = 0
        self.peers: int | None = None
        self.stores: list[Store] = []
        self.threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self._lock = lock
        self._is_told = False  # Whether the log has the error.

    def end(self) -> None:
        """Let the threads end."""
        self.is_ended = True
        self._ended.set()
        with taking(self._lock):
            self.work.notify()
        for store in self.stores:
            store.close()

    def pause(self, seconds: float) -> None:
        """Wait, or until the end."""
        self._ended.wait(seconds)

    def note(self, thread: str, error: str | None) -> None:
        """Note what is wrong with a thread's connection; None for nothing. The log has what changes."""
        with taking(self._lock):
            were_errors = any(self.errors.values())
            self.errors[thread] = error
            are_errors = any(self.errors.values())
            since = self.since
            if were_errors is not are_errors:
                self.since = time.time()
            is_new = error is not None and not self._is_told
            self._is_told = are_errors and (self._is_told or is_new)
        if self.is_ended:
            return
        if is_new:
            tell_aside(logging.WARNING, "%s: %s; messages wait, and it is tried again", self.name, error)
        elif were_errors and not are_errors:
            tell_aside(logging.INFO, "%s: connected after %.1f s", self.name, time.time() - since)


class _Loop:
    """What the two threads have in common: they survive everything and try again."""

    what = ""

    def __init__(self, state: _State, store: Store, hide_password: Callable[[str], str]) -> None:
        self.state = state
        self.store = store
        self._hide_password = hide_password

    def run(self) -> None:
        """Take steps until the end."""
        failures = 0
        while not self.state.is_ended:
            try:
                if not self.step():
                    break
                if failures or self.state.errors[self.what] is not None:
                    failures = 0
                    self.state.note(self.what, None)
            except Exception as error:  # Of the server, of redis-py or our own: the thread has to go on.
                self.store.close()
                self.state.note(self.what, self._hide_password(str(error) or type(error).__name__))
                self.state.pause(random.uniform(0.0, min(1.0, 0.02 * 2 ** min(failures, 10))))
                failures += 1
        self.store.close()

    def step(self) -> bool:
        """Do the next thing; return whether there is more to do."""
        raise NotImplementedError


class _Sender(_Loop):
    """The publisher's thread."""

    what = "publish"

    def __init__(
        self, state: _State, store: Store, publisher: str, stream: tuple[int, int], hide_password: Callable[[str], str],
    ) -> None:
        super().__init__(state, store, hide_password)
        self._publisher = publisher
        self._stream = stream
        self._is_policy_known = False
        self._is_first = True

    def step(self) -> bool:
        state = self.state
        with state.work:
            if not (state.outgoing.is_due or state.is_closing or self._is_first or state.errors[self.what]):
                state.work.wait(HEARTBEAT)
            is_last = state.is_closing and not state.outgoing.is_due
            batch = state.outgoing.batch(BATCH, BATCH_SIZE)
        if state.is_ended:
            return False
        answer: Answer = self.store.publish(self._publisher, batch, *self._stream, time.monotonic(), is_last)
        self._is_first = False
        with state.work:
            state.outgoing.confirm(answer.have, time.monotonic())
            state.peers = max(0, answer.heard - 1)
            if is_last and not state.outgoing.is_due:
                return False
        if not self._is_policy_known:
            self._is_policy_known = True
            self._warn_of_eviction()
        return True

    def _warn_of_eviction(self) -> None:
        policy = self.store.eviction()
        if policy is not None:
            tell_aside(
                logging.WARNING, "%s: maxmemory-policy is %s, so Redis may throw messages away that not everybody has "
                "read; they are sent again, over and over. Use noeviction", self.state.name, policy)


class _Reader(_Loop):
    """The reader's thread."""

    what = "read"

    def __init__(
        self, state: _State, store: Store, listener: Listener, publisher: str, history: int, max_entry_size: int,
        timeout: float, hide_password: Callable[[str], str],
    ) -> None:
        super().__init__(state, store, hide_password)
        self._listener = listener
        self._history = history
        self._max_entry_size = max_entry_size
        self._block = min(BLOCK, timeout / 2)
        self._started = time.monotonic()
        self._reading = Reading(publisher, self._started)
        self._count = _FIRST_COUNT
        self._has_begun = False
        self._forget_at = self._started + _FORGET_EVERY
        self._is_told = False

    def step(self) -> bool:
        state, reading = self.state, self._reading
        if not self._has_begun:
            self._begin()
            self._has_begun = True
        is_starting = not state.is_placed.is_set()
        raw = self.store.read(reading.place, self._count, 0.0 if is_starting else self._block)
        is_full = len(raw) == self._count
        for one in raw:
            entry = self._decode(one)
            events = None if entry is None else reading.take(entry, time.monotonic())
            if entry is not None and events is None:
                return True  # From the start of the stream.
            self._tell(events or [])
        self._count = next_count(self._count, sum(len(one) for _, fields in raw for one in fields), is_full)
        if not raw:
            self._check()
        elif not is_full:
            reading.reach_end(reading.place)
        if is_starting and not is_full:  # Now it has what was published while it read the history.
            state.is_placed.set()
        return True

    def _begin(self) -> None:
        """Find the place, and what stands before it."""
        view: View = self.store.look(with_numbers=True)
        elapsed = time.monotonic() - self._started
        # Later than that, others may have published what this process has to have.
        place = view.end if elapsed < START_WAIT * 0.8 else place_of(view.end, view.time, elapsed)
        self._tell(self._reading.begin(place, self._read_history(place), view.end, view.numbers, time.monotonic()))

    def _read_history(self, place: tuple[int, int]) -> list[Arrived]:
        found: list[Arrived] = []
        size, count = 0, _FIRST_COUNT
        while len(found) < self._history and size < _HISTORY_SIZE:
            raw = self.store.read_back(place, min(count, self._history - len(found)))
            entries = [one for one in map(self._decode, raw) if one is not None]
            if not entries:
                break
            found += entries
            place = id_before(entries[-1].id)
            bytes_read = sum(len(one) for _, fields in raw for one in fields)
            size += bytes_read
            count = next_count(count, bytes_read, True)
        return found[::-1]

    def _check(self) -> None:
        """Nothing came: look whether the stream still ends where we are, and what is missing from it."""
        reading, now = self._reading, time.monotonic()
        is_forgetting = now >= self._forget_at
        view = self.store.look(reading.is_trimmed or is_forgetting)
        if reading.reach_end(view.end):
            return
        if reading.is_trimmed:
            self._tell(reading.settle(view.end, view.numbers, now))
        if is_forgetting:
            self._forget_at = now + _FORGET_EVERY
            for publisher in reading.forget(view.numbers, now):
                self._call(self._listener.note_gone, publisher)

    def _decode(self, raw: Raw) -> Arrived | None:
        try:
            return decode(*raw, self._max_entry_size)
        except Unreadable as error:  # Not even its id: it is no Redis that answers.
            self._note_unreadable(str(error))
            return None

    def _tell(self, events: list[Event]) -> None:
        """Tell the listener."""
        listener, state = self._listener, self.state
        for event in events:
            if isinstance(event, Deliver):
                with state.work:
                    state.received += 1
                    state.lag = max(0.0, time.time() - event.entry.wall)
                self._call(listener.deliver, _entry_of(event.entry))
            elif isinstance(event, Remember):
                self._call(listener.remember, _entry_of(event.entry))
            elif isinstance(event, Begin):
                self._call(listener.begin, event.publisher, event.number)
            elif isinstance(event, Missed):
                with state.work:
                    state.gaps += event.missing or 0
                self._call(listener.note_gap, Gap(event.publisher, event.missing, event.reason))
            else:
                with state.work:
                    state.dropped += 1
                if event.fault is not None:
                    self._note_unreadable(event.fault)

    def _note_unreadable(self, fault: str) -> None:
        if not self._is_told:  # Once: others may write as many as they like.
            self._is_told = True
            tell_aside(
                logging.WARNING, "%s: skipped an entry that cannot be read: %s; more of them are only counted",
                self.state.name, fault)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:  # As broad as what the application's code may raise.
            tell_aside(logging.ERROR, "%s: error in its listener", self.state.name, error=error)


def _entry_of(one: Arrived) -> Entry:
    return Entry(one.publisher, one.number, one.kind, one.header, one.payload)
