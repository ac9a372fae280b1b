"""The receiving half of a connection: it reads, answers control frames, and hands messages to the application.

The connection's own thread owns all of it, and the protocol's receive half; other threads may look at the counters.
"""

from __future__ import annotations

from werkzeug.wrappers import Request

from . import clock
from .control_frames import answer
from .ending import State
from .exceptions import ProtocolError
from .logs import logger, name_of
from .options import Options
from .sending import Sender
from .transport import IDLE_RECV_SIZE, RECV_SIZE, Transport
from .wire.frames import CloseCode, Opcode
from .wire.messages import Message
from .wire.protocol import Close

# Looking a member up in its enum costs as much as a function call.
_OPEN, _TEXT, _BINARY = State.OPEN, Opcode.TEXT, Opcode.BINARY
_EOF = "the TCP connection was closed without a Close frame"
_LAST_READS = 0.1  # Seconds after a deadline to read what has come; a peer may send Pings, or parts, without end.


class Receiver:
    """The receiving half of one connection.

    Args:
        request: the opening handshake, which names the connection in log lines.
        options: its limits.
        sender: its sending half.
        now: the time.

    Attributes:
        waiting_since: since when the application waits for a message; None while it works.
        messages_received: how many so far.
        bytes_received: likewise.
    """

    __slots__ = (
        "waiting_since", "messages_received", "bytes_received", "_request", "_options", "_sender", "_protocol",
        "_transport", "_recv_size", "_room", "_allowance", "_allowance_since",
    )

    def __init__(self, request: Request, options: Options, sender: Sender, now: float) -> None:
        self.waiting_since: float | None = None
        self.messages_received = 0
        self.bytes_received = 0
        self._request = request
        self._options = options
        self._sender = sender
        self._protocol = sender.protocol
        self._transport: Transport | None = None
        self._recv_size = IDLE_RECV_SIZE
        self._room: memoryview | None = None  # Where the protocol wants the next bytes, if that matters.
        self._allowance = max(options.max_message_rate or 1.0, 1.0)  # Messages that the rate lets through now.
        self._allowance_since = now

    def open(self, transport: Transport, unread: bytes) -> None:
        """Begin to read, after the bytes that the server has read already."""
        self._transport = transport
        if unread:
            self._take(unread)

    def receive_message(self, timeout: float | None = None) -> Message:
        """Wait for the next message; see :meth:`wsthread.Connection.receive_message`."""
        sender = self._sender
        if not sender.is_own_thread():
            raise RuntimeError("only the connection's own thread may receive")
        deadline = None if timeout is None else clock.now() + timeout
        protocol, ending = self._protocol, sender.ending
        try:
            while ending.state is _OPEN:
                if not sender.is_corked:
                    if sender.holds:
                        sender.flush()
                    self._read(deadline)
                    continue
                try:
                    event = protocol.next_event()
                except ProtocolError as error:
                    self._answer_violation(error)
                    continue
                if event is None:
                    sender.is_corked = False
                    self._room = protocol.room()
                    continue
                opcode = event[0]
                if opcode is _TEXT or opcode is _BINARY:
                    self.messages_received += 1
                    sender.is_corked = protocol.has_input
                    if self._options.max_message_rate is None or self._is_within_rate(self._options.max_message_rate):
                        return event
                else:
                    answer(event, sender)
        finally:
            self.waiting_since = None
        with sender.send_lock:
            raise sender.closed_error()

    def finish(self) -> None:
        """Wait until nothing is left to send and nothing to read that counts, or no more bytes will come."""
        transport, sender = self._transport, self._sender
        assert transport is not None
        patience = self._options.close_timeout
        while not self._is_over(transport):
            # A peer that keeps sending is cut by the housekeeper when close_timeout is over.
            if not transport.wait(readable=True, writable=sender.outbox.size > 0, timeout=patience):
                sender.terminate(f"timeout of {patience:g} s")
            elif not self._read_now(transport):
                break

    def is_unread(self) -> bool:
        """Tell whether bytes have come that are not read yet, because the application works."""
        return self._transport is not None and self._transport.wait(readable=True, timeout=0.0)

    def _is_over(self, transport: Transport) -> bool:
        sender, protocol = self._sender, self._protocol
        try:
            while (event := protocol.next_event()) is not None:
                if event.opcode is Opcode.CLOSE:  # Messages that come after our Close are dropped, as a browser does.
                    answer(event, sender)
            self._room = protocol.room()
        except ProtocolError as error:
            self._answer_violation(error)
        with sender.send_lock:
            sender.flush_now()
            if sender.outbox.size:
                return False
            failure = sender.ending.failure
        if failure is None:
            return protocol.close_received is not None
        if failure.code == CloseCode.ABNORMAL_CLOSURE:
            return True
        # After a violation the peer still has to read our Close: end our direction and wait for its EOF.
        transport.end_sending()
        return False

    def _is_within_rate(self, rate: float) -> bool:
        """Count a message against ``max_message_rate``; close when it is over it."""
        now = clock.now()
        # What was not used is saved up, for one second.
        self._allowance = min(max(rate, 1.0), self._allowance + (now - self._allowance_since) * rate)
        self._allowance_since = now
        if self._allowance < 1.0:
            logger.warning("%s: closed, it sends more than %g messages per second", name_of(self._request), rate)
            self._sender.close(Close(CloseCode.POLICY_VIOLATION, f"more than {rate:g} messages per second"))
            return False
        self._allowance -= 1.0
        return True

    def _answer_violation(self, error: ProtocolError) -> None:
        logger.warning("%s: the peer broke the protocol: %s", name_of(self._request), error)
        self._sender.answer_violation(error)

    def _read(self, deadline: float | None) -> None:
        """Wait for bytes and give them to the protocol."""
        transport = self._transport
        assert transport is not None
        first = self.waiting_since is None
        if first:
            self.waiting_since = clock.now()
        if deadline is not None:
            left = deadline - clock.now()
            if not (first or left > -_LAST_READS) or not transport.wait(readable=True, timeout=left):
                raise TimeoutError("no message in time")
        try:
            if self._room is None:
                self._take(transport.recv(self._recv_size))
            else:
                self._take_into_room(transport.recv_into(self._room))
        except OSError as error:
            self._sender.lose(str(error))

    def _read_now(self, transport: Transport) -> bool:
        """Give the protocol what is there; False when no more will come."""
        try:
            if self._room is None:
                data = transport.recv_now(RECV_SIZE)
                return data is None or self._take(data)
            count = transport.recv_into_now(self._room)
            return count is None or self._take_into_room(count)
        except OSError as error:
            self._sender.lose(str(error))
            return False

    def _take(self, data: bytes) -> bool:
        count = len(data)
        if count:
            self.bytes_received += count
            self._recv_size = RECV_SIZE if count >= IDLE_RECV_SIZE else IDLE_RECV_SIZE
            self._protocol.receive_data(data)
            self._sender.is_corked = True
            return True
        self._sender.lose(_EOF)
        return False

    def _take_into_room(self, count: int) -> bool:
        self._room = None
        if count:
            self.bytes_received += count
            self._protocol.filled(count)
            self._sender.is_corked = True
            return True
        self._sender.lose(_EOF)
        return False
