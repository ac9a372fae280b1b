"""How a connection ends: its state, and what each event does to it.

Three verbs. *Close*: send a Close and wait for the peer's answer. *Fail*: note that no answer of the peer will come, or
count. *Cut*: fail, and give up the TCP connection at once.

============================  ====================================  ==========================================
event                         while OPEN                            while CLOSING
============================  ====================================  ==========================================
the application closes        close with its code                   nothing; the first Close counts
the handler returns           close with 1000                       nothing
a callback raises             close with 1011                       nothing
the server stops              close with ``shutdown_code``          nothing
the peer is too slow (1)      close with 1013                       nothing
no message came (2)           close with 1001                       nothing
the peer sends a Close        close with the peer's code            the closing handshake is complete
the peer breaks the protocol  close with 1002, 1007 or 1009, fail   fail with that code
EOF or a reset comes          fail with 1006                        fail with 1006
a write breaks                cut with 1006                         cut with 1006
no Pong came (3)              cut with 1006                         cut with 1006
the peer takes nothing (4)    cut with 1006                         cut with 1006
``close_timeout`` is over     --                                    cut with 1006
``terminate()``               cut with 1006                         cut with 1006
============================  ====================================  ==========================================

(1) :mod:`wsthread.overflow`. (2) ``read_timeout``. (3) ``ping_timeout``. (4) ``write_timeout``.

The connection is CLOSING from the first of these events, and its thread brings it to CLOSED
(:meth:`wsthread.link.Link.finish`). In CLOSED nothing changes any more. What the connection ended with is the peer's
Close if there is one, else the first failure (RFC 6455 7.1.5).

Pure. The send lock guards it.
"""

from __future__ import annotations

from enum import IntEnum

from .wire.frames import CloseCode
from .wire.protocol import Close, Protocol


class State(IntEnum):
    """The life of a connection, with the numbers of the browser's ``readyState``."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


class Ending:
    """The state of one connection, and what it ended with.

    Attributes:
        state: the :class:`State` of this moment.
        failure: why the connection ends without a Close of the peer; None as long as there is no reason.
        is_ours: whether we ended it and not the peer, so that its messages do not count any more.
    """

    __slots__ = ("state", "failure", "is_ours", "_protocol")

    def __init__(self, protocol: Protocol) -> None:
        self.state = State.CONNECTING
        self.failure: Close | None = None
        self.is_ours = False
        self._protocol = protocol  # It knows which Close was sent, and which was received.

    @property
    def outcome(self) -> Close | None:
        """What the connection ended with; None as long as that is not known."""
        return self._protocol.close_received or self.failure

    def close(self, *, is_ours: bool) -> bool:
        """Begin to close; tell whether that was the first event, so that a Close has to be sent.

        Args:
            is_ours: whether it is our wish, and no answer to what the peer did.
        """
        if self.state is State.OPEN:
            self.state = State.CLOSING
            self.is_ours = is_ours
            return True
        return False

    def fail(self, code: int, reason: str) -> None:
        """Note why no Close of the peer will come; the first reason counts."""
        if self.state is not State.CLOSED:
            self.state = State.CLOSING
        if self.failure is None:
            sent = self._protocol.close_sent
            if sent is not None and code == CloseCode.ABNORMAL_CLOSURE:
                reason = f"no answer to Close {sent.code}: {reason}"
            self.failure = Close(code, reason)

    def finish(self) -> None:
        """The TCP connection has ended."""
        assert self.outcome is not None
        self.state = State.CLOSED
