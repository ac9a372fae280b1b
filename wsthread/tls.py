"""TLS in the server: a transport over the server's own TLS session.

A session cannot move to another socket object. So the exchange is the reverse of that of plain sockets: the server's
:class:`ssl.SSLSocket` becomes ours, with its descriptor and its session, and the calls that the server still makes on
this object reach the dummy. For that the object gets another class, :class:`_ServersEnd`, whose methods are those of
the dummy. We call the methods of :class:`ssl.SSLSocket` itself.

OpenSSL allows one thread at a time in a session, and reading and writing threads are two. So the descriptor does not
block, each call is short and made under the *TLS lock*, and waiting happens outside of it. It comes after the send lock
and the receive lock, and nothing else is taken under it.

**A record that was begun has to be ended.** When the kernel takes nothing more, OpenSSL has encrypted its record
already and wants the same bytes again. So :meth:`TlsTransport.send` keeps them and says that all of them but the last
have left. Then the outbox is not empty, its first entry is not one that may be dropped, and the next ``send`` begins
with that last byte: it ends the record before anything else.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import threading
from typing import Any

from .locks import taking
from .transport import LAST_READS, RECV_SIZE, Transport

_RECORD = 1 << 14  # Bytes: the most that is in one record (RFC 8446 5.1).
_DONT_WAIT = int(socket.MSG_DONTWAIT)

CERTIFICATE_KEY = "wsthread.client_certificate"
"""Where the environ of a handshake has the client's certificate, in the form of :meth:`ssl.SSLSocket.getpeercert`."""


def certificate_of(shown: object) -> dict[str, Any] | None:
    """Return the certificate of the client behind a server's socket; None when it has shown none that was verified."""
    certificate: dict[str, Any] | None = shown.getpeercert() if isinstance(shown, ssl.SSLSocket) else None
    return certificate or None


class _ServersEnd(ssl.SSLSocket):
    """What the server's socket is after the exchange: all that the server calls reaches the dummy."""

    __slots__ = ()

    _dummy: socket.socket

    def fileno(self) -> int:
        return self._dummy.fileno()

    def recv(self, *args: Any) -> bytes:
        return self._dummy.recv(*args)

    def recv_into(self, *args: Any) -> int:
        return self._dummy.recv_into(*args)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        return self._dummy.recv(len) if buffer is None else self._dummy.recv_into(buffer, len)

    def send(self, *args: Any) -> int:
        return self._dummy.send(*args)

    def sendall(self, *args: Any) -> None:
        self._dummy.sendall(*args)

    def write(self, data: Any) -> int:
        return self._dummy.send(data)

    def sendfile(self, *args: Any) -> int:
        return self._dummy.sendfile(*args)

    def pending(self) -> int:
        return 0

    def shutdown(self, how: int) -> None:
        self._dummy.shutdown(how)

    def unwrap(self) -> socket.socket:
        return self._dummy

    def setblocking(self, flag: bool) -> None:
        self._dummy.setblocking(flag)

    def settimeout(self, value: float | None) -> None:
        self._dummy.settimeout(value)

    def gettimeout(self) -> float | None:
        return self._dummy.gettimeout()

    def setsockopt(self, *args: Any) -> None:
        """Do nothing; the options of a TCP socket are not for the dummy."""

    def close(self) -> None:
        self._dummy.close()

    def detach(self) -> int:
        return self._dummy.detach()


class _Turn:
    """The TLS lock, fair for two: whoever has just had it lets the other one go first.

    A plain lock would be had by the same thread again and again, for it is still awake.
    """

    __slots__ = ("_lock", "_next")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = threading.Lock()  # Held by the one that waits.

    def __enter__(self) -> None:
        taken: list[bool] = []
        try:
            with taking(self._next):
                taken.extend(map(taking(self._lock).acquire, (True,)))  # In one step, see wsthread.writing.
        except BaseException:  # Of a signal handler.
            if taken:
                self._lock.release()
            raise

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


class TlsTransport(Transport):
    """A TLS connection that was the server's.

    The methods have the contracts of :class:`wsthread.transport.Transport`.

    Args:
        sock: the server's socket, of that class itself and of none that is derived from it.
        dummy: what the server has in its place from now on. It belongs to the server.
    """

    __slots__ = ("_turn", "_begun", "_has_failed", "_has_ended", "_input")

    def __init__(self, sock: ssl.SSLSocket, dummy: socket.socket) -> None:
        dummy.settimeout(sock.gettimeout())
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            pass  # It is a Unix socket, or the peer is gone already.
        self._turn = _Turn()
        self._begun = b""  # The record that was begun. The send lock guards it, too.
        self._has_failed = False  # Whether the session is of no use any more.
        self._has_ended = False  # Whether our direction has ended, and nobody wants to know any more what comes.
        setattr(sock, "_dummy", dummy)
        sock.__class__ = _ServersEnd
        self._socket: ssl.SSLSocket = sock
        self._input = select.poll()  # One thread reads at a time.
        self._input.register(self.fileno(), select.POLLIN)
        self.recv = self._recv
        self.send = self._send

    def fileno(self) -> int:
        return socket.socket.fileno(self._socket)

    @property
    def raw_descriptor(self) -> int:
        """-1: bytes that are written to the descriptor would not be encrypted."""
        return -1

    # Reading

    def _recv(self, size: int) -> bytes:
        while (data := self._recv_if_ready(size)) is None:
            pass
        return data

    def _recv_if_ready(self, size: int) -> bytes | None:
        self._wait_for_input()
        return self.recv_now(size)

    def _wait_for_input(self) -> None:
        if not self._has_pending():
            self._input.poll()

    def _has_pending(self) -> bool:
        with self._turn:
            return not self._has_ended and self._pending() > 0

    def _pending(self) -> int:
        try:
            return ssl.SSLSocket.pending(self._socket)
        except (ValueError, OSError):
            return 0

    def recv_into(self, buffer: memoryview) -> int:
        while True:
            self._wait_for_input()
            count = self.recv_into_now(buffer)
            if count is not None:
                return count

    def recv_now(self, size: int) -> bytes | None:
        if self._has_ended:
            return self._recv_raw(size)
        parts: list[bytes] = []
        while size > 0:
            part = self._read(min(size, _RECORD))
            if not part:  # An EOF behind bytes comes again.
                if not parts:
                    return part
                break
            parts.append(part)
            size -= len(part)
            if len(part) < _RECORD:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def recv_into_now(self, buffer: memoryview) -> int | None:
        data = self.recv_now(len(buffer))
        if data is None:
            return None
        buffer[:len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes | None:
        if self.fileno() < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        with self._turn:
            try:
                data: bytes = ssl.SSLSocket.read(self._socket, size)
                return data
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return None
            except (ssl.SSLZeroReturnError, ValueError):  # The session has ended in both directions.
                return b""
            except OSError:
                self._has_failed = True
                raise

    def _recv_raw(self, size: int) -> bytes | None:
        try:
            return socket.socket.recv(self._socket, size, _DONT_WAIT)
        except BlockingIOError:
            return None

    # Writing

    def _send(self, data: bytes | memoryview) -> int:
        with self._turn:
            sent = 0
            if self._begun:
                if not self._write(self._begun):
                    return 0
                self._begun, sent = b"", 1
            view = memoryview(data)
            while sent < len(view):
                record = bytes(view[sent:sent + _RECORD])
                count = self._write(record)
                if not count:
                    self._begun = record
                    return sent + len(record) - 1
                sent += count
            return sent

    def _write(self, record: bytes) -> int:
        """Write a record, or end one that was begun; return 0 when the kernel takes no more now."""
        try:
            return ssl.SSLSocket.write(self._socket, record)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except ValueError as error:
            raise BrokenPipeError("the TLS session has ended") from error
        except OSError:
            self._has_failed = True
            raise

    def send_both(self, header: bytes, payload: bytes) -> int:
        room = _RECORD - len(header)
        sent = self._send(header + payload[:room])
        if sent < len(header) + min(room, len(payload)) or room >= len(payload):
            return sent
        return sent + self._send(memoryview(payload)[room:])

    # Waiting

    def wait(self, *, readable: bool = False, writable: bool = False, timeout: float | None = None) -> bool:
        """The same. What can be read may be a part of a record, so a read after it may still have nothing."""
        if readable and self._has_pending():
            return True
        return super().wait(readable=readable, writable=writable, timeout=timeout)

    # Ending

    def hold_back(self) -> None:
        """Nothing: the end is a record of its own, and who waits for that is told at once."""

    def end_sending(self) -> None:
        """The same. What comes from now on is not decrypted; it is only for seeing that it ends."""
        self._say_goodbye()
        self._has_ended = True
        self._shutdown(socket.SHUT_WR)

    def shutdown(self) -> None:
        self._say_goodbye()
        self._shutdown(socket.SHUT_RDWR)

    def _say_goodbye(self) -> None:
        """Send close_notify, without which the peer takes the end for an attack (RFC 8446 6.1)."""
        with self._turn:
            if self._has_failed or self._has_ended:
                return
            try:
                ssl.SSLSocket.unwrap(self._socket)
            except (OSError, ValueError):
                pass  # The kernel takes nothing, or the peer's has not come: that is not waited for.

    def _shutdown(self, how: int) -> None:
        try:
            socket.socket.shutdown(self._socket, how)
        except OSError:
            pass  # The peer was faster.

    def close(self) -> None:
        if self.fileno() < 0:
            return
        try:
            for _ in range(LAST_READS):
                if not self._recv_raw(RECV_SIZE):
                    break
        except OSError:
            pass
        finally:
            self.close_copy()

    def close_copy(self) -> None:
        """Close the descriptor, without a word to the peer."""
        number = socket.socket.detach(self._socket)
        if number >= 0:
            os.close(number)
