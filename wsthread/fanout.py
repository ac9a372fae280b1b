"""A message on its way to many: chosen, sent to all who can take it at once, and to the others one by one.

A client that may come back (:mod:`wsthread.recovery`) gets a head before each message. What is kept for such clients is
sent under the delivery lock, so that all of them get it in the order of its numbers.

Any thread may call what does not say otherwise.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from .addressing import Addressees, choose, connections_in
from .connection import Connection, let_in, link_of, senders_of
from .entries import Addressed
from .exceptions import BackplaneFull, ConnectionClosed
from .locks import taking
from .options import Options
from .overflow import Excess, Posted
from .recovery import Recovery
from .registry import Registry
from .sending import send_at_once
from .wire.frames import CloseCode
from .wire.messages import PreparedMessage
from .wire.protocol import Close
from .wire.resume import WITHOUT_NUMBER


class Broadcast(NamedTuple):
    """What became of a broadcast, in numbers of connections. It is false when no connection took the message.

    Attributes:
        sent: the kernel has it.
        queued: it waits in the connection's outbox.
        dropped: the peer is too slow, see ``overflow``.
        failed: the connection was closing or closed.
    """

    sent: int
    queued: int
    dropped: int
    failed: int

    def __bool__(self) -> bool:
        return self.sent + self.queued > 0


class Host(Protocol):
    """What it needs of its manager."""

    @property
    def current(self) -> Connection | None:
        """The connection whose thread is the calling one; None in any other thread."""

    def note_slow(self, conn: Connection, excess: Excess) -> None:
        """Tell of a peer that has just become too slow; no lock is held."""


class Fanout:
    """Sends messages to the members of one manager.

    Args:
        host: the manager.
        options: its options.
        note_change: for the registry.

    Attributes:
        registry: the members.
        recovery: the clients that may come back.
    """

    def __init__(self, host: Host, options: Options, note_change: Callable[[str, str, Any], None]) -> None:
        self._host = host
        self._options = options
        self._note_change = note_change
        self.reset()

    def reset(self) -> None:
        """Begin without members."""
        self.registry: Registry[Connection] = Registry(self._note_change)
        self.recovery = Recovery(self._options.history, self._post_locked)
        self._slow: deque[tuple[Connection, Excess]] = deque()  # Of whom to tell that they became too slow.

    def broadcast(self, message: PreparedMessage, to: Addressees | None, exclude: Addressees) -> Broadcast:
        """Send a message to members; see :meth:`wsthread.Manager.broadcast`."""
        current = self._host.current
        if current is not None:
            let_in(current)
        members, gone = choose(self.registry, to, exclude)
        return self._send_all(members, message, gone)

    def deliver(
        self, message: PreparedMessage, addressed: Addressed, origin: tuple[str, int] | None = None,
    ) -> None:
        """Send a message of another process to members. It waits for no peer: ``"block"`` is as ``"close"``.

        Args:
            message: the message.
            addressed: whom it is for.
            origin: who has published it, and its number there, if it is to be kept.
        """
        if origin is None:
            self._send_all(self.addressed(addressed), message, may_wait=False)
            return
        recovery = self.recovery
        with taking(recovery.lock):
            head = recovery.keep(*origin, message, addressed.to, addressed.exclude)
            self._send_all(
                recovery.ready(self.addressed(addressed), *origin), message, is_locked=True, head=head)
            if addressed.exclude:
                recovery.mark(self.registry.snapshot(addressed.exclude), *origin)
            recovery.tell_seen()
        self._tell_slow()

    def broadcast_kept(
        self, message: PreparedMessage, to: Addressees | None, exclude: Addressees, addressed: Addressed,
        publisher: str, publish: Callable[[], int],
    ) -> Broadcast:
        """Do what :meth:`broadcast` does with a message that is kept for clients that come back.

        Args:
            message: the message.
            to: as there, to be gone through more than once.
            exclude: likewise.
            addressed: whom these mean in other processes.
            publisher: the id of this process.
            publish: publishes it and returns its number.

        Raises:
            BackplaneFull: what ``publish`` has raised. The members here have been served.
        """
        current = self._host.current
        if current is not None:
            let_in(current)
        recovery = self.recovery
        try:
            with taking(recovery.lock):
                members, gone = choose(self.registry, to, exclude)
                try:
                    number = publish()
                except BackplaneFull:
                    self._send_all(members, message, is_locked=True)
                    recovery.miss(publisher)
                    raise
                # Connections are of this process, so they get it now or never.
                early = tuple([conn for conn in connections_in(to) if recovery.is_behind(conn) and conn in members])
                head = recovery.keep(
                    publisher, number, message, addressed.to, addressed.exclude,
                    (*early, *connections_in(exclude)), is_own=True)
                ready = recovery.ready(members, publisher, number)
                outcome = self._send_all(ready, message, gone, is_locked=True, head=head)
                self._send_all(early, message, is_locked=True)
                if exclude:
                    excluded = (*connections_in(exclude), *self.registry.snapshot(addressed.exclude))
                    recovery.mark(excluded, publisher, number)
                recovery.tell_seen()
        finally:
            self._tell_slow()
        sent, queued, dropped, failed = outcome
        return Broadcast(sent, queued + len(members) - len(ready), dropped, failed)  # The others get it from the ring.

    def addressed(self, addressed: Addressed) -> tuple[Connection, ...]:
        """Return the members that another process means."""
        members = self.registry.snapshot(addressed.to)
        if addressed.exclude:
            left_out = frozenset(self.registry.snapshot(addressed.exclude))
            members = tuple([conn for conn in members if conn not in left_out])
        return members

    def _send_all(
        self, members: tuple[Connection, ...], message: PreparedMessage, gone: int = 0, *, may_wait: bool = True,
        is_locked: bool = False, head: bytes | None = None,
    ) -> Broadcast:
        """Send a message to members.

        Args:
            members: the members.
            message: the message.
            gone: how many more it was meant for.
            may_wait: whether ``"block"`` may wait.
            is_locked: whether the delivery lock is held. Then nobody waits, and slow peers are told of later.
            head: what goes before it for clients that may come back; None: it is not kept.
        """
        sent, others = send_at_once(senders_of(members), message)
        queued = len(members) - sent - len(others)
        headed = None
        results = []  # No generator; see locks.py.
        for index in others:
            conn, one = members[index], message
            if link_of(conn).sender.is_resuming:
                headed = one = headed or message.behind(head or WITHOUT_NUMBER)
            results.append(self._post(conn, one, may_wait, is_locked))
        outcomes = Counter(results)
        return Broadcast(
            sent + outcomes[Posted.SENT], queued + outcomes[Posted.QUEUED], outcomes[Posted.DROPPED],
            gone + outcomes[None])

    def post(self, conn: Connection, message: PreparedMessage) -> bool:
        """Put a message on its way to one peer; see :meth:`wsthread.Connection.post`."""
        sender = link_of(conn).sender
        posted = self._post(conn, message.behind(WITHOUT_NUMBER) if sender.is_resuming else message)
        if posted is None:
            with taking(sender.send_lock):
                raise sender.closed_error()
        return posted is not Posted.DROPPED

    def _post(
        self, conn: Connection, message: PreparedMessage, may_wait: bool = True, is_locked: bool = False,
    ) -> Posted | None:
        """Return what became of the message, None when the connection was closing; see :meth:`_send_all`."""
        sender = link_of(conn).sender
        try:
            while True:
                posted, excess = sender.post(message)
                if excess is not None:
                    self._slow.append((conn, excess))
                    if not is_locked:
                        self._tell_slow()
                if posted is not Posted.FULL:
                    return posted
                if is_locked or not may_wait:
                    conn.close(CloseCode.TRY_AGAIN_LATER, "too slow")
                    return Posted.DROPPED
                sender.wait_progress()
        except (ConnectionClosed, TimeoutError):
            return None

    def _post_locked(self, conn: Connection, message: PreparedMessage) -> Posted | None:
        return self._post(conn, message, is_locked=True)

    def _tell_slow(self) -> None:
        """Tell of peers that became too slow, those that were noted while the delivery lock was held too."""
        while self._slow:
            try:
                noted = self._slow.popleft()
            except IndexError:
                return
            self._host.note_slow(*noted)

    def catch_up(self, conn: Connection) -> None:
        """Give a client that has come back what it has missed; its thread calls it."""
        sender = link_of(conn).sender

        def pause() -> None:
            self._tell_slow()
            while sender.outbox.cost > sender.options.max_outbox_size // 4:
                sender.wait_progress()

        self.recovery.catch_up(conn, lambda: self.registry.groups(conn.id), pause)

    def close(self, members: tuple[Connection, ...], close: Close) -> int:
        """Close members; return how many those are."""
        for conn in members:
            conn.close(*close)
        return len(members)
