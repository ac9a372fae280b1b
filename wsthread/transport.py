"""The socket of one connection: the only place that reads, writes, waits on and closes it.

Reading blocks and belongs to the connection's thread. Writing never blocks; the connection's send lock serialises
it, together with :meth:`Transport.close`. Waiting holds no lock.
"""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Callable
from types import MethodType

from . import speedups

# Bytes to read at once. Wait with a small buffer, for 1 KiB and its header, and after it was filled with a large one
# until little comes, such as a Pong.
IDLE_RECV_SIZE = 1088
RECV_SIZE = speedups.LARGE_READ
_DONT_WAIT = int(socket.MSG_DONTWAIT)  # A plain int: converting the enum member costs as much as a function call.
_TCP, _CORK = int(socket.IPPROTO_TCP), getattr(socket, "TCP_CORK", None)  # Linux's.
_LONGEST_WAIT = 2e6  # Seconds, 23 days: poll() takes hardly more than that, and more is no limit.
_HANG_UP = getattr(select, "POLLRDHUP", 0)  # Linux's. POLLHUP and POLLERR need not be asked for.
LAST_READS = 16  # A peer that keeps sending does not keep us from closing.


class Transport:
    """A stream socket, plain TCP or Unix.

    Attributes:
        recv: ``recv(size)`` blocks until there are bytes; ``b""`` is EOF. Raises OSError when the connection broke.
        send: ``send(data)`` writes what the kernel takes now and returns how many bytes that was, 0 when it takes
            none. Raises OSError when the connection broke.
    """

    __slots__ = ("_socket", "_handle", "recv", "send")

    recv: Callable[[int], bytes]
    send: Callable[[bytes | memoryview], int]

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        if sock.family != socket.AF_UNIX:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                pass  # The peer is gone already; the first read will tell.
        self._socket = sock
        self._take_handle()

    def _take_handle(self) -> None:
        self._handle = speedups.handle(self._socket)
        # Methods of a handle: they are smaller and faster than partials.
        self.recv = MethodType(speedups.recv, self._handle)
        self.send = MethodType(speedups.send, self._handle)

    def fileno(self) -> int:
        """Return the file descriptor; -1 when closed."""
        return self._socket.fileno()

    def send_both(self, header: bytes, payload: bytes) -> int:
        """The same as send() for two pieces, without a copy that joins them."""
        return speedups.send_both(self._handle, header, payload)

    def recv_into(self, buffer: memoryview) -> int:
        """The same as recv() for a writable buffer; return the number of bytes, 0 at EOF.

        Raises:
            OSError: the connection broke.
        """
        return speedups.recv_into(self._handle, buffer)

    def recv_now(self, size: int) -> bytes | None:
        """Read what is there now, None when that is nothing and ``b""`` at EOF.

        Raises:
            OSError: the connection broke.
        """
        return speedups.recv_now(self._handle, size)

    def recv_into_now(self, buffer: memoryview) -> int | None:
        """The same as recv_now() for a writable buffer; return the number of bytes, 0 at EOF.

        Raises:
            OSError: the connection broke.
        """
        try:
            return self._socket.recv_into(buffer, 0, _DONT_WAIT)
        except BlockingIOError:
            return None

    def wait(self, *, readable: bool = False, writable: bool = False, timeout: float | None = None) -> bool:
        """Wait until a read or a write would not block, or the connection broke.

        Args:
            readable: wait for bytes or EOF.
            writable: wait for room in the send buffer.
            timeout: seconds, None for no limit. More than 23 days are no limit either.

        Returns:
            False when the time is over.
        """
        poll = select.poll()
        try:
            poll.register(self.fileno(), (select.POLLIN if readable else 0) | (select.POLLOUT if writable else 0))
        except ValueError:  # Closed meanwhile; the caller is going to see that.
            return True
        if timeout is None or timeout > _LONGEST_WAIT:
            return bool(poll.poll(None))
        return bool(poll.poll(math.ceil(max(0.0, timeout) * 1000)))

    def is_hung_up(self) -> bool:
        """Tell whether nothing more will come, besides what is there to be read: after EOF or a reset."""
        poll = select.poll()
        try:
            poll.register(self.fileno(), _HANG_UP)
        except ValueError:  # Closed meanwhile.
            return True
        return bool(poll.poll(0))

    @property
    def raw_descriptor(self) -> int:
        """The descriptor that frames may be written to as they are; -1 for none."""
        return self._socket.fileno()

    def hold_back(self) -> None:
        """Let what is sent from now on leave together with the end, for that follows at once.

        The peer has one segment less to answer. When no end comes, Linux sends it after 0.2 s.
        """
        if _CORK is not None:
            try:
                self._socket.setsockopt(_TCP, _CORK, 1)
            except OSError:
                pass  # It is a Unix socket, or the peer is gone already.

    def end_sending(self) -> None:
        """Tell the peer that nothing more will come; reading goes on. The connection's thread calls it."""
        self._shutdown(socket.SHUT_WR)

    def shutdown(self) -> None:
        """End both directions. Wakes a blocked recv and every wait; any thread may call it."""
        self._shutdown(socket.SHUT_RDWR)

    def _shutdown(self, how: int) -> None:
        try:
            self._socket.shutdown(how)
        except OSError:
            pass  # The peer was faster.

    def close(self) -> None:
        """Close the socket. Bytes that nobody read are thrown away first: the kernel would answer them with a reset."""
        try:
            for _ in range(LAST_READS):
                if not self.recv_now(RECV_SIZE):
                    break
        except OSError:
            pass
        finally:
            self._socket.close()
            self._take_handle()  # The number may be another file's from now on.

    def close_copy(self) -> None:
        """Close a copy that a fork made; the connection itself is not touched."""
        self._socket.close()
        self._take_handle()
