"""Clients that come back: what each of them is told, and what it gets that it has missed.

It is about connections whose clients have agreed to the subprotocol of :mod:`wsthread.wire.resume`. Such a client is
*behind* from its handshake on, until the application has put it into its groups, which is when ``on_connect`` has
returned or a handler receives for the first time. Messages go into the ring (:mod:`wsthread.history`) meanwhile, and
not to the client. Then its own thread reads the ring and posts what is for it, as fast as the client takes it. When
nothing is left, the client is *up to date* and gets what others get.

The *delivery lock* makes this exact: a message is numbered, kept and posted to all, and a client becomes up to date,
while somebody holds it. So the messages of a publisher also come to each client in the order of their numbers. Nobody
waits for a peer or calls the application while holding it. It comes before the locks of connections and of the
registry.

What cannot be shown to be complete is told as ``recovered: false``, before anything comes that is behind it.

A client may know more than the process that it comes to: it is *ahead*. That process may not even know who has
published what the client has seen: a process that has just begun, or one that has ended long ago. The client is told
that it has not recovered then, and keeps the number for as long as messages are kept, with a mark. If the publisher
turns out to be there, the client does not get twice what it has seen; if not, the number does no more harm.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from . import clock
from .connection import Connection, link_of
from .exceptions import ConnectionClosed
from .history import History, Kept, Memory, Ring
from .locks import taking
from .overflow import Posted
from .wire.frames import CloseCode, Opcode
from .wire.messages import PreparedMessage
from .wire.resume import doubtful, head, mark, notice, parse_seen, split_seen

#: Puts a message on its way to a client, as it is; tells what became of it, None when the connection is closing.
Post: TypeAlias = Callable[[Connection, PreparedMessage], "Posted | None"]

_PATIENCE = 10.0  # Seconds for the client's first message.
_MOST_UNKNOWN = 1000  # Publishers that a client may have seen, and this process does not know.
_SCANNED = 500  # Messages of the ring that are looked at while the lock is held.


class _Client:
    """What is known of a client.

    Attributes:
        seen: the numbers that it has seen when it came.
        place: where it reads the ring next; None when it is up to date.
        recovers: whether nothing is missing so far.
        ahead: numbers that it saw elsewhere, and that are still to come here. It does not get them again.
        doubts_until: from when on those of unknown publishers are not told any more, in seconds on the clock.
    """

    __slots__ = ("seen", "place", "recovers", "ahead", "doubts_until")

    def __init__(self, seen: Mapping[str, int], place: int, recovers: bool, doubts_until: float) -> None:
        self.seen = seen
        self.doubts_until = doubts_until
        self.place: int | None = place
        self.recovers = recovers
        self.ahead: dict[str, int] = {}


class Recovery:
    """The clients of one manager that may come back, and what they may have missed.

    Args:
        history: how much is kept; None for nothing: then whoever comes back has not recovered.
        post: the hub's.

    Attributes:
        lock: the delivery lock.
        is_on: whether there is a history.
    """

    def __init__(self, history: History | None, post: Post) -> None:
        self.lock = threading.Lock()  # Guards everything below.
        self.is_on = history is not None
        self._ring = Ring(history or History())
        self._doubted = history.seconds if history is not None else 0.0  # Seconds.
        self._post = post
        self._clients: dict[Connection, _Client] = {}
        self._special: dict[Connection, _Client] = {}  # Those of them that are behind, or ahead of this process.
        self._recovered = self._failed = 0

    # The life of a client: its thread calls these, without the lock

    def greet(self, conn: Connection) -> bool:
        """Get the first message of a client and tell it where it begins.

        Returns:
            Whether it is still there.
        """
        try:
            message = link_of(conn).receiver.receive_message(_PATIENCE)
            seen = parse_seen(message.payload)
        except TimeoutError:
            conn.close(CloseCode.GOING_AWAY, f"no first message came within {_PATIENCE:g} s")
        except ValueError as error:
            conn.close(CloseCode.PROTOCOL_ERROR, str(error)[:100])
        except ConnectionClosed:
            pass
        else:
            with taking(self.lock):
                client = self._enter(conn, seen)
                # What replaces the numbers that the client has seen tells in the same breath that something is missing:
                # the client may vanish at any time, and come back with the new numbers.
                lost = {} if client.recovers else {"recovered": False}
                seen = self._told(client, client.seen)
                self._post(conn, PreparedMessage(notice(subprotocol=conn.subprotocol, seen=seen, **lost)))
            return True
        return False

    def _enter(self, conn: Connection, seen: Mapping[str, int] | None) -> _Client:
        ring, now = self._ring, clock.now()
        ring.expire(now)
        doubts_until = now + self._doubted
        if seen is None:
            client = _Client(ring.seen, ring.end, True, doubts_until)
        else:
            known, unknown = split_seen(seen)
            for publisher in [one for one in unknown if ring.number(one) is not None]:
                known[publisher] = max(unknown.pop(publisher), known.get(publisher, 0))
            everything = {**dict([*unknown.items()][-_MOST_UNKNOWN:]), **known}
            if self.is_on and ring.covers(known):
                client = _Client(everything, ring.start, True, doubts_until)
            else:
                client = _Client({**ring.seen, **self._ahead(everything)}, ring.end, False, doubts_until)
        self._clients[conn] = self._special[conn] = client
        return client

    def catch_up(self, conn: Connection, groups: Callable[[], frozenset[str]], pause: Callable[[], None]) -> None:
        """Give a client what it has missed, and then what comes.

        Args:
            conn: the client's connection.
            groups: tells in which groups it is.
            pause: waits until the client has taken most of what waits for it.
        """
        is_behind = True
        while is_behind:
            try:
                pause()
            except (ConnectionClosed, TimeoutError):
                return
            with taking(self.lock):
                client = self._clients.get(conn)
                if client is None:
                    return
                is_behind = self._go_on(conn, client, groups())

    def _go_on(self, conn: Connection, client: _Client, groups: frozenset[str]) -> bool:
        """Give a client some of what it has missed; tell whether there may be more."""
        assert client.place is not None
        ring = self._ring
        kept = ring.read(client.place, _SCANNED)
        if kept is None:  # They were dropped meanwhile.
            client.seen = {**client.seen, **ring.seen, **self._ahead(client.seen)}
            client.place, client.recovers = ring.end, False
            self._post(conn, PreparedMessage(notice(recovered=False)))
            return True
        if kept:
            limit, size = link_of(conn).sender.options.max_outbox_size // 4, 0
            for one in kept:
                if size > limit:
                    break
                client.place += 1
                if one.number > client.seen.get(one.publisher, 0) and one.is_for(conn.id, groups):
                    size += len(one.payload)
                    if self._post(conn, _message(one)) is Posted.DROPPED:
                        conn.close(CloseCode.TRY_AGAIN_LATER, "too slow")  # It goes on from here when it is back.
                        return False
            return True
        self._be_up_to_date(conn, client)
        return False

    def _be_up_to_date(self, conn: Connection, client: _Client) -> None:
        client.place, client.ahead = None, self._ahead(client.seen)
        client.seen = {}
        if not client.ahead:
            del self._special[conn]
        if client.recovers:
            self._recovered += 1
        else:
            self._failed += 1
        self._tell(conn, client, True)

    def _ahead(self, seen: Mapping[str, int]) -> dict[str, int]:
        return {one: number for one, number in seen.items() if number > (self._ring.number(one) or 0)}

    def leave(self, conn: Connection) -> None:
        """Forget a client."""
        with taking(self.lock):
            self._clients.pop(conn, None)
            self._special.pop(conn, None)

    # What the lock's holder calls

    def keep(
        self, publisher: str, number: int, message: PreparedMessage, to: frozenset[str] | None,
        exclude: frozenset[str], without: Iterable[Connection] = (), *, is_own: bool = False,
    ) -> bytes:
        """Keep a message for those who come back, and return what goes before it.

        Args:
            publisher: who has published it.
            number: its number there.
            message: the message.
            to: the groups that get it; None for all connections.
            exclude: groups that do not.
            without: connections that do not.
            is_own: whether this process has published it.
        """
        self.note(publisher, number, is_own=is_own)
        opcode, octets = message.content
        self._ring.add(Kept(
            publisher, number, to, exclude, frozenset([conn.id for conn in without]), opcode is Opcode.TEXT, octets,
            clock.now()))
        return head(publisher, number)

    def note(self, publisher: str, number: int, *, is_own: bool = False) -> None:
        """Note that a publisher has come to a number."""
        if is_own:
            self._ring.note_own(publisher, number)
        else:
            self._ring.note(publisher, number)

    def ready(self, members: tuple[Connection, ...], publisher: str, number: int) -> tuple[Connection, ...]:
        """Return the members that a message may be posted to now. The others get it from the ring, or have it."""
        if not self._special:
            return members
        return tuple([conn for conn in members if conn not in self._special or self._is_ready(conn, publisher, number)])

    def _is_ready(self, conn: Connection, publisher: str, number: int) -> bool:
        client = self._special[conn]
        if client.place is not None:
            return False
        seen = client.ahead.get(publisher)
        if seen is None:
            return True
        if number >= seen:
            del client.ahead[publisher]
            if not client.ahead:
                del self._special[conn]
        return number > seen

    def is_behind(self, conn: Connection) -> bool:
        """Tell whether a client does not get messages yet."""
        client = self._special.get(conn)
        return client is not None and client.place is not None

    def mark(self, members: Iterable[Connection], publisher: str, number: int) -> None:
        """Tell clients of the number of a message that they do not get."""
        message = PreparedMessage(mark(publisher, number))
        for conn in members:
            client = self._clients.get(conn)
            if client is not None and client.place is None and client.ahead.get(publisher, 0) < number:
                self._post(conn, message)

    def tell_seen(self) -> None:
        """Tell clients now and then what they have seen, for they see only what is for them."""
        now = clock.now()
        if self._ring.is_to_be_told(now):
            self._ring.note_told(now)
            for conn, client in self._clients.items():
                if client.place is None:
                    self._tell(conn, client)

    def _tell(self, conn: Connection, client: _Client, recovered: bool | None = None) -> None:
        seen = self._ring.seen
        seen.update({one: max(number, seen.get(one, 0)) for one, number in client.ahead.items()})
        seen = self._told(client, seen)
        values = {"seen": seen} if recovered is None else {"seen": seen, "recovered": recovered}
        if self._post(conn, PreparedMessage(notice(**values))) is Posted.DROPPED and recovered is not None:
            conn.close(CloseCode.TRY_AGAIN_LATER, "too slow")

    def _told(self, client: _Client, seen: Mapping[str, int]) -> dict[str, int]:
        """Return what a client is told that it has seen."""
        known = {one: number for one, number in seen.items() if self._ring.number(one) is not None}
        if len(known) == len(seen) or clock.now() >= client.doubts_until:
            return known
        return {**known, **{doubtful(one): number for one, number in seen.items() if one not in known}}

    # What comes from other processes, without the lock

    def begin(self, publisher: str, number: int) -> None:
        """See :meth:`wsthread.bus.backplane.Listener.begin`."""
        with taking(self.lock):
            self._ring.begin(publisher, number)

    def forget(self, publisher: str) -> None:
        """Note that a publisher has ended."""
        with taking(self.lock):
            self._ring.forget(publisher, clock.now())

    def recall(self) -> bytes:
        """See :meth:`wsthread.bus.backplane.Listener.recall`."""
        with taking(self.lock):
            memory = self._ring.recall()
        return memory.encode(clock.now())

    def restore(self, data: bytes) -> None:
        """See :meth:`wsthread.bus.backplane.Listener.restore`."""
        memory = Memory.decode(data, clock.now())
        with taking(self.lock):
            self._ring.restore(memory)
            self._ring.expire(clock.now())

    def note_gap(self, publisher: str | None) -> None:
        """Tell clients that messages were missed, some of which may have been for them."""
        with taking(self.lock):
            self.miss(publisher)

    def miss(self, publisher: str | None) -> None:
        """The same while the lock is held."""
        self._ring.miss(publisher)
        for conn, client in self._clients.items():
            client.recovers = False
            if client.place is None:
                self._tell(conn, client, False)
            else:
                self._post(conn, PreparedMessage(notice(recovered=False)))

    def check(self) -> None:
        """Do what is due; the housekeeper calls it."""
        with taking(self.lock):
            self._ring.expire(clock.now())
            self.tell_seen()

    def stats(self) -> dict[str, int] | None:
        """Return numbers for the operator; None when there is no history."""
        if not self.is_on:
            return None
        return {
            "messages": self._ring.end - self._ring.start, "bytes": self._ring.size, "clients": len(self._clients),
            "recovered": self._recovered, "not_recovered": self._failed}


def _message(kept: Kept) -> PreparedMessage:
    opcode = Opcode.TEXT if kept.is_text else Opcode.BINARY
    return PreparedMessage.of(opcode, kept.payload).behind(head(kept.publisher, kept.number))
