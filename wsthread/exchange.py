"""What a manager does with the other processes that serve managers of its name: it publishes, and it listens.

Each process serves its own connections first. Then the entry goes to a backplane (:mod:`wsthread.bus.backplane`), which
waits for nobody, and what others have published comes back in the backplane's thread. :mod:`wsthread.entries` has the
kinds of entries.

Nothing starts before the first connection of a process, or the first thing that it has to publish. So a manager may be
made before the server forks its workers. If the backplane cannot start, the manager stays *alone*, and the log says so.

Callbacks of the application run in a thread of their own, one after another (:mod:`wsthread.errands`): a slow one
delays other callbacks, and neither messages nor what other processes are told of our members.

Any thread may call what does not say otherwise.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from . import clock, entries, lifecycle, presence, servers
from .addressing import Addressees, choose, elsewhere, fixed
from .bus.backplane import Backplane, BackplaneUnavailable, Entry, Gap, NotNeeded, new_publisher
from .bus.local import LocalBackplane
from .entries import Malformed, Outgoing
from .errands import Errands
from .exceptions import BackplaneFull
from .fanout import Broadcast
from .hub import Hub, Reports
from .locks import taking
from .logs import tell_aside
from .options import Options
from .presence import Change, Member, Presence
from .wire.messages import Payload, PreparedMessage
from .wire.protocol import Close

_SIGN_OF_LIFE = 5.0  # Seconds between two.
_SILENCE = 15.0  # Seconds after which a process is taken to have ended.
_FAREWELL = 1.0  # Seconds for what has to be published still when a process ends.

_lock = threading.Lock()  # Guards the two below.
_named: weakref.WeakValueDictionary[str, Exchange] = weakref.WeakValueDictionary()  # Those that have started.
_unnamed: weakref.WeakSet[Exchange] = weakref.WeakSet()


class Exchange:
    """What speaks to other processes for one manager. It is the :class:`~wsthread.bus.backplane.Listener` as well.

    Args:
        reports: the manager.
        options: its options.
        callbacks: of the application: on_notify, on_members and on_gap. They are read when they are called.

    Attributes:
        hub: the manager's connections.
    """

    def __init__(self, reports: Reports, options: Options, callbacks: dict[str, Callable[..., Any]]) -> None:
        self._callbacks = callbacks
        self._options = options
        self._backplane = LocalBackplane() if options.backplane == "local" else options.backplane
        self._name = options.name or "default"
        self._is_second = False  # Whether another manager without a name was made before.
        if options.name is None and self._backplane is not None:
            with taking(_lock):
                self._is_second = bool(_unnamed)
                _unnamed.add(self)
        self._begin_anew()
        self.hub = Hub(reports, options, self)

    def __str__(self) -> str:
        return f"{self.hub} {self._name!r}"

    def _begin_anew(self) -> None:
        self._start_lock = threading.Lock()  # Guards the next two.
        self._process = 0  # The id of the process in which it has started.
        self._line: Backplane | None = None  # The backplane, once it has started.
        self._publisher, self._number = new_publisher(), 0  # Of kept messages, as long as there is no line.
        self._malformed = 0  # The backplane's thread owns it.
        self._presence = Presence()
        self._changes: deque[Change] = deque()  # Of our own members, to be published.
        self._has_told = False  # Whether there were ever any changes.
        self._owes_presence = False  # Whether others may have missed some of them.
        self._signed_at = clock.now()  # The housekeeper's.
        self._errands = Errands(f"wsthread-errands-{self._name}")  # Our own, which no callback delays.
        self._calls = Errands(f"wsthread-callbacks-{self._name}")

    # The beginning and the end

    def start(self) -> None:
        """Begin to listen, if that has not happened in this process. It raises nothing."""
        if self._process == os.getpid():
            return
        with taking(self._start_lock):
            if self._process == os.getpid():
                return
            self._line = self._start()
            self._process = os.getpid()
        self._publish(Outgoing(entries.ASK, {"of": None}), is_vital=False)

    def _start(self) -> Backplane | None:
        backplane = self._backplane
        if backplane is None:
            return None
        try:
            self._claim_name()
            history = self._options.history
            if history is None:
                backplane.start(self._name, self)
            else:
                self.hub.recovery.begin(backplane.publisher, 0)
                backplane.start(self._name, self, history.count)
            self._enter(backplane)
        except (BackplaneUnavailable, OSError, RuntimeError) as error:  # The latter when there are no more threads.
            self._leave_name()
            if isinstance(error, NotNeeded):
                return None
            tell_aside(
                logging.WARNING, "%s: broadcasts reach the clients of this process only, and no other workers: %s",
                self, error)
            return None
        return backplane

    def _enter(self, backplane: Backplane) -> None:
        """Let the end of the process be the backplane's too."""
        try:
            lifecycle.enter(self.hub, self._options.shortest_deadline() / 4)
        except BaseException:
            backplane.close(0)
            raise

    def _claim_name(self) -> None:
        """Let no two managers of one process answer to a name.

        Raises:
            BackplaneUnavailable: another one has it.
        """
        if isinstance(self._backplane, LocalBackplane) and servers.room() is None:
            return  # Nobody listens.
        if self._is_second:
            raise BackplaneUnavailable(
                'it is the second manager without a name, and only one is shared; write Manager(name="...")')
        with taking(_lock):
            if _named.setdefault(self._name, self) is not self:
                raise BackplaneUnavailable(f"another manager of this process has the name {self._name!r}")

    def _leave_name(self) -> None:
        with taking(_lock):
            if _named.get(self._name) is self:
                del _named[self._name]

    def close(self) -> None:
        """Publish what is left, and stop listening. The manager's connections have ended."""
        with taking(self._start_lock):
            line, self._line = self._line, None
            self._process = os.getpid()  # It does not start again.
        if line is not None:
            self._tell_changes(line)
            line.close(_FAREWELL)
            self._leave_name()

    def reset_after_fork(self) -> None:
        """Be as before the start. Only the forking thread runs."""
        global _lock
        _lock = threading.Lock()
        self._leave_name()
        if self._backplane is not None:  # Also when it has not started: its publisher's id is the parent's.
            self._backplane.reset_after_fork()
        self._begin_anew()

    # What the application says

    def broadcast(
        self, payload: Payload, to: Addressees | None, exclude: Addressees, local: bool,
    ) -> Broadcast:
        """Send a message to members of all processes; see :meth:`wsthread.Manager.broadcast`."""
        message = PreparedMessage(payload)
        to, exclude = fixed(to), fixed(exclude)
        if local:
            return self.hub.fanout.broadcast(message, to, exclude)
        self.start()
        keeps = self.hub.recovery.is_on
        if self._line is None and not keeps:
            return self.hub.fanout.broadcast(message, to, exclude)
        addressed = elsewhere(to, exclude)
        if not keeps or not addressed:
            outcome = self.hub.fanout.broadcast(message, to, exclude)
            if addressed:
                self._publish(entries.message(payload, addressed))
            return outcome
        line = self._line
        if line is None:  # It is numbered all the same.
            return self.hub.fanout.broadcast_kept(message, to, exclude, addressed, self._publisher, self._count)
        outgoing = entries.message(payload, addressed)
        return self.hub.fanout.broadcast_kept(
            message, to, exclude, addressed, line.publisher, lambda: line.publish(*outgoing))

    def _count(self) -> int:  # The delivery lock is held.
        self._number += 1
        return self._number

    def close_many(self, close: Close, to: Addressees | None, exclude: Addressees) -> int:
        """Close members of all processes; see :meth:`wsthread.Manager.close`."""
        self.start()
        to, exclude = fixed(to), fixed(exclude)
        closed = self.hub.fanout.close(choose(self.hub.registry, to, exclude).members, close)
        addressed = elsewhere(to, exclude)
        if addressed:
            self._publish(entries.close(close, addressed))
        return closed

    def notify(self, data: Any) -> None:
        """Tell all processes something; see :meth:`wsthread.Manager.notify`."""
        outgoing = entries.notice(data)
        self.start()
        self._call("on_notify", entries.data_of(Entry("", 0, *outgoing)))
        self._publish(outgoing)

    def members(self, group: str) -> tuple[Member, ...]:
        """Return those in a group; see :meth:`wsthread.Manager.members`."""
        own: list[Member] = [told for _, told in self.hub.registry.told(group)]
        return tuple(sorted(own + self._presence.members(group), key=lambda one: (one.since, one.id)))

    def stats(self) -> dict[str, Any] | None:
        """Return how the backplane does; None when there is none."""
        line = self._line
        if line is None:
            return None
        health = line.health()
        return {
            "kind": type(line).__name__, "name": self._name, **health._asdict(),
            "dropped": health.dropped + self._malformed}

    def _publish(self, outgoing: Outgoing, is_vital: bool = True) -> bool:
        """Publish; return whether that was possible.

        Args:
            outgoing: what to publish.
            is_vital: whether the caller has to know when it was not.

        Raises:
            BackplaneFull: it was not, and it is vital.
        """
        line = self._line
        if line is None:
            return True
        try:
            self._publish_on(line, outgoing)
        except BackplaneFull:
            if is_vital:
                raise
            return False
        return True

    def _publish_on(self, line: Backplane, outgoing: Outgoing) -> None:
        """Publish what is no message; its number counts as seen by those who come back."""
        recovery = self.hub.recovery
        if not recovery.is_on:
            line.publish(*outgoing)
            return
        with taking(recovery.lock):
            recovery.note(line.publisher, line.publish(*outgoing), is_own=True)

    def _call(self, name: str, *args: Any) -> None:
        """Let a callback of the application be called."""
        def call_back() -> None:
            try:
                self._callbacks[name](*args)
            except BaseException as error:
                tell_aside(logging.ERROR, "%s: error in %s", self, name, error=error)
        if not self._calls.add(call_back):
            tell_aside(logging.ERROR, "%s: %s was not called, for those before take too long", self, name)

    # Presence

    def note_change(self, group: str, id: str, told: Any) -> None:
        """Note that a member has told something, or has left; see :class:`wsthread.registry.Registry`."""
        self._has_told = True
        self._changes.append(Change(group, id, told))
        if len(self._changes) == 1:  # Else somebody was asked already.
            self._errands.add(lambda: self._tell_changes(self._line))

    def _tell_changes(self, line: Backplane | None) -> None:
        """Publish what has changed among our own members, and tell the application."""
        changes = []
        while self._changes:
            changes.append(self._changes.popleft())
        if not changes:
            return
        if line is not None:
            try:
                self._publish_on(line, presence.told(changes))
            except BackplaneFull:
                self._owes_presence = True
        self._note_groups({one.group for one in changes})

    def _tell_anew(self) -> None:
        """Publish all of our own members."""
        self._owes_presence = False
        if not self._has_told:
            return
        for outgoing in presence.told_anew(self.hub.registry.told()):
            if not self._publish(outgoing, is_vital=False):
                self._owes_presence = True
                return

    def _note_groups(self, groups: set[str]) -> None:
        for group in sorted(groups):
            self._call("on_members", group)

    def check(self, now: float) -> None:
        """Give a sign of life, and forget those who gave none; the housekeeper calls it."""
        if self.hub.recovery.is_on:
            self.hub.recovery.check()
        line = self._line
        if self._changes:  # Perhaps no thread was to be had.
            self._errands.add(lambda: self._tell_changes(self._line))
        if line is None:
            return
        if self._owes_presence:
            self._owes_presence = False
            if not self._errands.add(self._tell_anew):
                self._owes_presence = True
        if line.knows_ends or now < self._signed_at + _SIGN_OF_LIFE:
            return
        self._signed_at = now
        count = len(self.hub.registry.told())
        if count:
            self._publish(Outgoing(entries.ALIVE, {"count": count}), is_vital=False)
        self._note_groups(self._presence.forget_silent(now - _SILENCE))

    # What comes: the backplane's thread

    def begin(self, publisher: str, number: int) -> None:
        """See :class:`wsthread.bus.backplane.Listener`, as for the next ones."""
        if self.hub.recovery.is_on:
            self.hub.recovery.begin(publisher, number)

    def remember(self, entry: Entry) -> None:
        """Keep a message that others have delivered before this process began."""
        recovery = self.hub.recovery
        if not recovery.is_on:
            return
        try:
            with taking(recovery.lock):
                if entry.kind == entries.MESSAGE:
                    recovery.keep(
                        entry.publisher, entry.number, PreparedMessage(entries.payload_of(entry)),
                        *entries.addressed(entry))
                else:
                    recovery.note(entry.publisher, entry.number)
        except Malformed as error:
            self._note_malformed(entry, error)

    def recall(self) -> bytes:
        """Return what this process remembers of messages."""
        return self.hub.recovery.recall() if self.hub.recovery.is_on else b""

    def restore(self, memory: bytes) -> None:
        """Take over what another process remembers."""
        if self.hub.recovery.is_on and memory:
            self.hub.recovery.restore(memory)

    def deliver(self, entry: Entry) -> None:
        """Do what an entry of another process says."""
        recovery = self.hub.recovery
        if recovery.is_on and entry.kind != entries.MESSAGE:
            with taking(recovery.lock):
                recovery.note(entry.publisher, entry.number)
        try:
            self._deliver(entry)
        except Malformed as error:
            self._note_malformed(entry, error)

    def _note_malformed(self, entry: Entry, error: Malformed) -> None:
        if self.hub.recovery.is_on:
            with taking(self.hub.recovery.lock):
                self.hub.recovery.note(entry.publisher, entry.number)
        self._malformed += 1
        tell_aside(
            logging.WARNING, "%s: entry %d of %s cannot be read: %s", self, entry.number, entry.publisher, error)

    def _deliver(self, entry: Entry) -> None:
        match entry.kind:
            case entries.MESSAGE:
                self.hub.fanout.deliver(
                    PreparedMessage(entries.payload_of(entry)), entries.addressed(entry),
                    (entry.publisher, entry.number) if self.hub.recovery.is_on else None)
            case entries.CLOSE:
                self.hub.fanout.close(self.hub.fanout.addressed(entries.addressed(entry)), entries.close_of(entry))
            case entries.NOTICE:
                self._call("on_notify", entries.data_of(entry))
            case entries.PRESENCE:
                self._note_groups(self._presence.apply(entry, clock.now()))
            case entries.ALIVE:
                if not self._presence.hear(entry.publisher, entry.header.get("count", 0), clock.now()):
                    self._ask(entry.publisher)
            case entries.ASK:
                if entry.header.get("of") in (None, self._line and self._line.publisher):
                    self._errands.add(self._tell_anew)
            case _:
                raise Malformed(f"there is no kind {entry.kind!r}")

    def note_gap(self, gap: Gap) -> None:
        """Tell the application that messages were missed, and ask for the members anew."""
        missing = "some" if gap.missing is None else str(gap.missing)
        tell_aside(
            logging.WARNING, "%s: %s entries of %s were missed: %s", self, missing,
            gap.publisher or "other processes", gap.reason)
        if self.hub.recovery.is_on:
            self.hub.recovery.note_gap(gap.publisher)
        self._call("on_gap", gap)
        self._ask(gap.publisher)

    def note_gone(self, publisher: str) -> None:
        """Forget the members of a process that has ended."""
        self.hub.recovery.forget(publisher)
        self._note_groups(self._presence.forget(publisher))

    def _ask(self, publisher: str | None) -> None:
        self._errands.add(lambda: self._publish(Outgoing(entries.ASK, {"of": publisher}), is_vital=False))
