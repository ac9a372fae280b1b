"""What is due when, for one connection: its pings, and how long it may stay silent, stuck or closing.

Pure: it gets the time and the counters, and answers with what to do. The connection's send lock guards it. It is asked
rarely: :attr:`Deadlines.due` tells when the next question makes sense.
"""

from __future__ import annotations

import math
from enum import Enum, auto

from .options import Options


class Action(Enum):
    """What a connection has to do."""

    NOTHING = auto()
    PING = auto()
    CLOSE = auto()
    CUT = auto()


class Deadlines:
    """The deadlines of one connection. Times are seconds on the monotonic clock.

    Args:
        options: how long they are.
        now: the time.
        first_ping: when the first Ping is due, as a part of ``ping_interval``: spreads those of many connections
            that came at once.

    Attributes:
        due: when to call :meth:`check` next; infinity for never.
        latency: seconds between the last Ping and its Pong; None before the first.
        last_pong: when that Pong came; None before.
    """

    __slots__ = (
        "due", "latency", "last_pong", "_options", "_close_at", "_closing_sent", "_stuck_at", "_sent", "_idle_at",
        "_ping_at", "_gone_at", "_seen", "_pinged_at", "_pings", "_answered",
    )

    def __init__(self, options: Options, now: float, first_ping: float = 1.0) -> None:
        self.latency: float | None = None
        self.last_pong: float | None = None
        self._options = options
        self._close_at = math.inf  # When the closing handshake must be over, ...
        self._closing_sent = 0  # ... or more than this must have left of what comes before our Close.
        self._stuck_at = math.inf  # When something must have left the outbox, ...
        self._sent = 0  # ... more than this.
        self._idle_at = math.inf if options.read_timeout is None else now + options.read_timeout
        self._ping_at = math.inf if options.ping_interval is None else now + options.ping_interval * first_ping
        self._gone_at = math.inf  # When a sign of life must have come after the Ping, ...
        self._seen = (0, 0)  # ... other bytes received, or waiting and sent, than these.
        self._pinged_at = now
        self._pings = 0
        self._answered = True  # Whether the last Ping got its Pong.
        self.due = 0.0
        self._update_due()

    @property
    def ping_payload(self) -> bytes:
        """What the last Ping carries, for its Pong to be told from others."""
        return b"%d" % self._pings

    def closing(self, now: float, sent: int = 0) -> None:
        """Note that a Close was sent or received: from now on the peer's part may take ``close_timeout``.

        If our Close has to wait behind other bytes, call this again when it has left.

        Args:
            now: the time.
            sent: bytes that left the outbox so far.
        """
        self._closing_sent = sent
        self._close_at = now + self._options.close_timeout
        self._update_due()

    def waiting(self, now: float, sent: int) -> None:
        """Note that something waits in the outbox, from which ``sent`` bytes left so far."""
        if self._options.write_timeout is not None:
            self._sent = sent
            self._stuck_at = now + self._options.write_timeout
            self._update_due()

    def pong(self, now: float, payload: bytes) -> None:
        """Note that a Pong came."""
        if not self._answered and payload == self.ping_payload:
            self._answered = True
            self.latency = now - self._pinged_at
            self.last_pong = now
            self._gone_at = math.inf
            self._update_due()

    def check(
        self, now: float, *, received: int, unread: bool, sent: int, waiting: bool, idle_since: float | None,
    ) -> tuple[Action, str]:
        """Tell what is due.

        Args:
            now: the time.
            received: bytes received so far.
            unread: whether more came that nobody has read yet, because the application works.
            sent: bytes that left the outbox so far.
            waiting: whether something waits in the outbox.
            idle_since: since when the application waits for a message; None while it works.

        Returns:
            The action, and for CLOSE and CUT the reason.
        """
        options = self._options
        action, reason = Action.NOTHING, ""
        # A peer that takes what waits is alive, even if it gets to the Ping late. What the kernel took while nothing
        # had to wait, such as the Ping itself, tells nothing about the peer.
        alive = unread or received != self._seen[0] or (waiting and sent != self._seen[1])
        if now >= self._close_at and waiting and sent != self._closing_sent:
            self.closing(now, sent)  # The peer still takes what comes before our Close.
        elif now >= self._close_at:
            action, reason = Action.CUT, f"timeout of {options.close_timeout:g} s"
        elif now >= self._stuck_at and waiting and sent == self._sent:
            action, reason = Action.CUT, f"the peer took nothing for {options.write_timeout:g} s"
        elif now >= self._gone_at and not alive:
            action, reason = Action.CUT, f"no pong within {options.ping_timeout:g} s"
        elif self._close_at == math.inf:
            if self._is_idle(now, idle_since):
                action, reason = Action.CLOSE, f"no message for {options.read_timeout:g} s"
            elif now >= self._ping_at:
                self._note_ping(now, (received, sent), alive)
                action = Action.PING
        self._note_check(now, sent, waiting)
        return action, reason

    def _is_idle(self, now: float, idle_since: float | None) -> bool:
        if now < self._idle_at:
            return False
        assert self._options.read_timeout is not None
        self._idle_at = (now if idle_since is None else idle_since) + self._options.read_timeout
        return now >= self._idle_at

    def _note_ping(self, now: float, seen: tuple[int, int], alive: bool) -> None:
        assert self._options.ping_interval is not None
        self._ping_at = now + self._options.ping_interval
        self._pinged_at = now
        self._pings += 1
        self._answered = False
        # With a ping_timeout longer than ping_interval, a Ping does not excuse that the one before got no answer.
        if self._options.ping_timeout is not None and (alive or self._gone_at == math.inf):
            self._seen = seen
            self._gone_at = now + self._options.ping_timeout

    def _note_check(self, now: float, sent: int, waiting: bool) -> None:
        if now >= self._gone_at:
            self._gone_at = math.inf
        if now >= self._stuck_at:
            self._stuck_at = math.inf
            if waiting:
                self.waiting(now, sent)
        self._update_due()

    def _update_due(self) -> None:
        if self._close_at < math.inf:  # No more pings.
            self.due = min(self._close_at, self._stuck_at)
        else:
            self.due = min(self._stuck_at, self._idle_at, self._ping_at, self._gone_at)
