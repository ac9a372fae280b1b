"""The receiving half of a connection: it reads, answers control frames, and hands messages to the application.

The *receive lock* guards all of it, and the protocol's receive half. Who holds it, and does what:

============================  =============================================  ===================================
when                          who owns the receiving half                    who ends the connection
============================  =============================================  ===================================
CONNECTING                    its creator: the lock is taken at birth        --
in ``receive()``              the connection's own thread, while it waits    --
in the application's code     the attendant, for moments; it never waits     the attendant
after the application's code  the connection's own thread                    its own thread, unless it is CLOSED
============================  =============================================  ===================================

The *attendant* is the housekeeper's thread. It comes about each quarter of a second to every connection whose own
thread is not in ``receive()`` (:meth:`Receiver.attend`). So while the application works, or sleeps, or waits, Pings get
their Pongs, a Close gets its answer, and EOF and resets are seen. Messages go into the inbox meanwhile; when it is
full, nothing is read any more, and whatever comes next waits in the kernel until the application asks for messages
again. Even then it is noticed that the peer has left.

A visit is short, whatever the peer sends: a flood of Pings or of empty fragments waits for the next visits, and keeps
no other connection from being attended.

Messages that came before the peer ended the connection are still handed over. After our own Close none is.

Lock order: the receive lock comes before the send lock.
"""

from __future__ import annotations

import logging
import math
import threading
from typing import Any

from . import clock
from .control_frames import answer
from .ending import State
from .exceptions import MessageTooBig, ProtocolError, RateExceeded
from .inbox import Inbox
from .locks import taking
from .logs import PATIENCE, name_of, tell_aside
from .options import Options
from .pacing import LONGEST, Turn, wait_for_turn
from .sending import Sender
from .transport import IDLE_RECV_SIZE, RECV_SIZE, Transport
from .wire.frames import CloseCode, Opcode
from .wire.messages import Message
from .wire.protocol import Close

# Looking a member up in its enum or a function up in its module costs as much as a function call.
_get_ident = threading.get_ident
_OPEN, _TEXT, _BINARY, _CLOSE = State.OPEN, Opcode.TEXT, Opcode.BINARY, Opcode.CLOSE
_EOF = "the TCP connection was closed without a Close frame"
_MOST_LATE = 1 << 26  # Bytes.
# Seconds of one visit of the attendant, who has others to look after, and bytes of one of its reads: those take
# milliseconds, even if they are Pings or fragments without payload.
_VISIT, _VISIT_READ = 0.01, RECV_SIZE // 4
_MANY = 1000  # Frames that came with one of these reads, from which on others have their turn.
_LAST_READS_NOW = 16  # Before a connection is closed whose peer may send without end.
_LAST_READS = 0.1  # Seconds after a deadline to read what has come; a peer may send Pings, or parts, without end.


class Receiver:
    """The receiving half of one connection.

    Args:
        environ: that of the opening handshake, which names the connection in log lines.
        options: its limits.
        sender: its sending half.
        now: the time.

    Attributes:
        lock: the receive lock.
        waiting_since: since when the application waits for a message; None while it works. Its own thread writes it.
        messages_received: how many the application got so far.
        bytes_received: how many so far.
        has_peer_left: whether the peer is known to have left although not all that it sent was read, because the inbox
            is full.
        ends_at_once: whether the connection's thread closes the socket as soon as the peer's Close has its answer, so
            that both may leave together. Whoever runs the application's code knows; False as long as nobody says so.
        begun_at: since when a message is under way that is not complete; None when there is none.
    """

    __slots__ = (
        "lock", "waiting_since", "messages_received", "bytes_received", "begun_at", "has_peer_left", "ends_at_once",
        "_environ", "_options", "_sender", "_protocol", "_transport", "_has_input", "_inbox", "_recv_size", "_room",
        "_allowance",
        "_allowance_since", "_frames_counted", "_is_unwanted", "_late", "_is_born", "_turn",
    )

    def __init__(self, environ: dict[str, Any], options: Options, sender: Sender, now: float) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()  # Until open() or abandon().
        self._is_born = False  # Whether one of them was called.
        self.waiting_since: float | None = None
        self.messages_received = 0
        self.bytes_received = 0
        self.begun_at: float | None = None
        self.has_peer_left = False
        self.ends_at_once = False
        self._environ = environ
        self._options = options
        self._sender = sender
        self._protocol = sender.protocol
        self._transport: Transport | None = None
        self._has_input = False  # Whether the protocol may have more events.
        self._inbox: Inbox | None = None  # Most connections never need it.
        self._recv_size = IDLE_RECV_SIZE
        self._room: memoryview | None = None  # Where the protocol wants the next bytes, if that matters.
        self._allowance = max(options.max_message_rate or 1.0, 1.0)  # Messages that the rate lets through now.
        self._allowance_since = now
        self._frames_counted = 0
        self._is_unwanted = False  # Whether the peer did what no peer may do.
        self._late = 0  # Bytes that came after that.
        self._turn: Turn | None = None  # While messages pile up.

    def open(self, transport: Transport, unread: bytes) -> None:
        """Let others have the receiving half; the bytes are those that the server has read already."""
        self._transport = transport
        if unread:
            self._take(unread)
        self._is_born = True
        self.lock.release()

    def abandon(self) -> None:
        """Let others have the receiving half of a connection that will not be open; nothing happens when it is."""
        if not self._is_born:
            self._is_born = True
            self._transport = None
            self.lock.release()

    def wait_opened(self) -> bool:
        """Wait until open() or abandon() was called; tell which."""
        with self.lock:
            return self._transport is not None

    def renew_lock(self) -> None:
        """Let a child of a fork have the receiving half; the thread that held the lock may not run there."""
        self.lock = threading.Lock()

    @property
    def inbox_size(self) -> int:
        """Bytes that wait for the application."""
        inbox = self._inbox  # Read once: the connection's thread may empty it meanwhile.
        return 0 if inbox is None else inbox.size

    @property
    def is_idle(self) -> bool:
        """Whether the application waits for a message, and none waits for it."""
        return self.waiting_since is not None and not self._inbox

    # The connection's thread

    def receive_message(self, timeout: float | None = None) -> Message:
        """Wait for the next message; see :meth:`wsthread.Connection.receive_message`."""
        sender = self._sender
        if _get_ident() != sender.thread_id:  # This runs for each message: it calls no more functions than it has to.
            raise RuntimeError("only the connection's own thread may receive")
        deadline = None if timeout is None else clock.now() + timeout
        protocol, ending, rate = self._protocol, sender.ending, self._options.max_message_rate
        with taking(self.lock) if self.lock.locked() else self.lock:
            try:
                while True:
                    if self._inbox is not None and not ending.is_ours:
                        self.messages_received += 1
                        return self._take_from_inbox()
                    if ending.state is not _OPEN:
                        break
                    ready = protocol.ready
                    if ready and rate is None and self._turn is None:
                        self.messages_received += 1
                        self.begun_at = None
                        message = ready.pop()
                        self._has_input = sender.is_corked = bool(ready) or protocol.has_input
                        return message
                    if not self._has_input:
                        if sender.held:
                            sender.flush()
                        self._read(deadline)
                        continue
                    if self._turn is not None and self._turn.is_over:
                        self._let_others_have_turns(deadline)
                        self._turn = Turn(protocol)
                    event = self._next_event()
                    if event is not None:
                        self.messages_received += 1
                        self._has_input = sender.is_corked = protocol.has_input
                        return event
            finally:
                self.waiting_since = None
        with taking(sender.send_lock):
            raise sender.closed_error()

    def finish(self) -> None:
        """Bring the closing handshake to its end and close the socket."""
        with self.lock:
            transport, sender, patience = self._transport, self._sender, self._options.close_timeout
            if transport is None:  # The attendant was faster.
                return
            try:
                sender.close(Close(CloseCode.NORMAL_CLOSURE))
                while not self._is_ended(transport):
                    # A peer that keeps sending is cut by the housekeeper when close_timeout is over.
                    if not transport.wait(readable=True, writable=sender.outbox.size > 0, timeout=patience):
                        sender.terminate(f"timeout of {patience:g} s")
            finally:  # Whatever fails, such as memory: a socket that stays open would be in the way of others.
                self._close(transport)

    # The attendant

    def attend(self) -> None:
        """Read and answer while the application works; it waits for nothing, and not for the receive lock either."""
        if not self.lock.acquire(blocking=False):
            return  # Whoever has it reads.
        try:
            transport = self._transport
            if transport is not None:
                self._attend_or_cut(transport)
        finally:
            self.lock.release()

    def _attend_or_cut(self, transport: Transport) -> None:
        try:
            self._attend(transport)
        except Exception as error:  # Such as MemoryError. What was under way is lost, so nothing may follow it.
            self._sender.lose("an error while it was attended")
            self._close(transport)
            tell_aside(logging.ERROR, "%s: error while it was attended", name_of(self._environ), error=error)

    def _attend(self, transport: Transport) -> None:
        ending = self._sender.ending
        self._sender.is_corked = False  # Replies do not wait for those to messages in the inbox.
        until = clock.now() + _VISIT
        while ending.state is _OPEN:
            if self._is_full():
                self.has_peer_left = transport.is_hung_up()
                return
            if self._has_input:
                event = self._next_event()
                if event is not None:
                    self._put_into_inbox(event)
            elif self._read_now(transport) is None:
                return
            if clock.now() >= until:
                return
        if self._is_ended(transport, until):
            self._close(transport)

    def is_deaf(self) -> bool:
        """Tell whether the peer may well be alive and not be heard: the inbox is full, or a visit was too short."""
        return self._has_input or self._is_full()

    def forget(self) -> None:
        """Give up the messages that wait for an application that works: they take too much memory."""
        if self.lock.acquire(blocking=False):  # Else the application is getting them.
            self._inbox = None
            self.lock.release()

    # The receive lock is held

    def _is_full(self) -> bool:
        inbox = self._inbox  # Read once, as above: is_deaf() does not hold the lock.
        return inbox is not None and inbox.is_full

    def _put_into_inbox(self, message: Message) -> None:
        if self._inbox is None:
            self._inbox = Inbox(self._options.max_inbox_size)
        self._inbox.add(message)

    def _take_from_inbox(self) -> Message:
        assert self._inbox is not None
        message = self._inbox.take()
        if not self._inbox:
            self._inbox = None
        return message

    def _next_event(self) -> Message | None:
        """Return the next message of the protocol, None when there is none yet; answer what is no message."""
        protocol = self._protocol
        try:
            event = protocol.next_event()
        except ProtocolError as error:
            self._answer_violation(error)
            return None
        rate = self._options.max_message_rate
        if rate is not None and not self._is_within_rate(rate):
            return None
        if event is None:
            self._has_input = False
            self._room = protocol.room()
            if self.begun_at is None and protocol.is_within_message:
                self.begun_at = clock.now()
            return None
        opcode = event[0]
        if opcode is not _TEXT and opcode is not _BINARY:
            if opcode is _CLOSE and self.ends_at_once and self._transport is not None:
                self._transport.hold_back()
            answer(event, self._sender)
            return None
        self.begun_at = None
        return event

    def _is_ended(self, transport: Transport, until: float = math.inf) -> bool:
        """Go towards the end without waiting; tell whether nothing is left to send and nothing to read that counts.

        Args:
            transport: the connection's.
            until: when to stop for now.
        """
        while True:
            before = self._protocol.frames
            turn = Turn(self._protocol)
            if self._is_over(transport):
                return True
            went_on = self._read_now(transport)
            if not went_on:
                return went_on is False
            if clock.now() >= until:
                return False
            if until == math.inf and self._protocol.frames - before > _MANY:  # It goes on sending.
                wait_for_turn(turn.cost(), LONGEST)

    def _is_over(self, transport: Transport) -> bool:
        sender, protocol = self._sender, self._protocol
        self._look_for_close()
        with taking(sender.send_lock):
            sender.flush_now()
            if sender.outbox.size:
                return False
            failure = sender.ending.failure
        if failure is None:
            return protocol.close_received is not None
        if failure.code == CloseCode.ABNORMAL_CLOSURE:
            # A write may break before the peer's Close was read that tells why.
            for _ in range(_LAST_READS_NOW):
                if not self._read_now(transport):
                    break
                self._look_for_close()
            return True
        # After a violation the peer still has to read our Close: end our direction and wait for its EOF.
        transport.end_sending()
        return False

    def _look_for_close(self) -> None:
        """Go through what has come; messages are dropped, as a browser does it behind its own Close."""
        protocol = self._protocol
        protocol.stop_inflating()
        try:
            while (event := protocol.next_event()) is not None:
                if event.opcode is Opcode.CLOSE:
                    answer(event, self._sender)
            self._room = protocol.room()
        except ProtocolError as error:
            self._answer_violation(error)

    def _close(self, transport: Transport) -> None:
        """Close the socket: the connection is CLOSED."""
        self._transport = None
        self._room = None
        try:
            self._protocol.release()
            if self._sender.ending.is_ours:
                self._inbox = None  # Nobody will get it.
        finally:
            self._sender.finish(transport)

    def _is_within_rate(self, rate: float) -> bool:
        """Count frames against ``max_message_rate``; close when they are more."""
        now, frames = clock.now(), self._protocol.frames
        # What was not used is saved up, for one second.
        self._allowance = min(max(rate, 1.0), self._allowance + (now - self._allowance_since) * rate)
        self._allowance -= frames - self._frames_counted
        self._allowance_since, self._frames_counted = now, frames
        if self._allowance >= 0.0:
            return True
        self._is_unwanted = True
        self._complain(f"closed, it sends more than {rate:g} messages per second (max_message_rate)")
        self._sender.close(Close(CloseCode.POLICY_VIOLATION, f"more than {rate:g} messages per second"))
        return False

    def _complain(self, complaint: str) -> None:
        """Tell the operator what the peer does wrong. The attendant waits for no handler of the log."""
        patience = PATIENCE if self._sender.is_own_thread() else 0.0
        tell_aside(logging.WARNING, "%s: %s", name_of(self._environ), complaint, patience=patience)

    def _answer_violation(self, error: ProtocolError) -> None:
        if isinstance(error, MessageTooBig):
            limit = self._options.max_message_size
            self._complain(f"closed, a message is larger than max_message_size, which is {limit} bytes: {error}")
        elif isinstance(error, RateExceeded):
            self._complain(f"closed, it sends {error} (max_control_rate)")
        else:
            self._complain(f"the peer broke the protocol: {error}")
        self._is_unwanted = True
        self._protocol.fail()
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
        if self._turn is not None:
            self._let_others_have_turns(deadline)
        if deadline is not None:
            self._read_now(transport)  # There may be less than can be read, such as half a TLS record.
            return
        try:
            if self._room is None:
                data = transport.recv(self._recv_size)
                self._take(data)
                if len(data) == RECV_SIZE or self._protocol.inflates:  # They pile up, or may grow.
                    self._turn = Turn(self._protocol)
            else:
                self._take_into_room(transport.recv_into(self._room))
        except OSError as error:
            self._sender.lose(str(error))

    def _let_others_have_turns(self, deadline: float | None) -> None:
        turn, self._turn = self._turn, None
        assert turn is not None
        wait_for_turn(turn.cost(), math.inf if deadline is None else deadline - clock.now())

    def _read_now(self, transport: Transport) -> bool | None:
        """Give the protocol what is there; None when that is nothing, False when no more will come."""
        try:
            if self._room is None:
                data = transport.recv_now(_VISIT_READ)
                return None if data is None else self._take(data)
            count = transport.recv_into_now(self._room)
            return None if count is None else self._take_into_room(count)
        except OSError as error:
            self._sender.lose(str(error))
            return False

    def _take(self, data: bytes) -> bool:
        count = len(data)
        if count:
            self.bytes_received += count
            self._recv_size = RECV_SIZE if count >= IDLE_RECV_SIZE else IDLE_RECV_SIZE
            self._has_input = True
            self._protocol.receive_data(data)
            if self._is_unwanted:
                self._note_late(count)
            return True
        self._sender.lose(_EOF)
        return False

    def _note_late(self, count: int) -> None:
        """Cut a peer that is not wanted and goes on sending."""
        self._late += count
        if self._late > _MOST_LATE:
            self._sender.terminate("it went on sending")

    @property
    def held(self) -> int:
        """Bytes that are held for this connection: of a message that is not complete, and in the inbox."""
        return self._protocol.held + self.inbox_size

    def _take_into_room(self, count: int) -> bool:
        self._room = None
        if count:
            self.bytes_received += count
            self._protocol.filled(count)
            self._has_input = True
            return True
        self._sender.lose(_EOF)
        return False
