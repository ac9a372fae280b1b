"""The one seam to the C extension: what C does faster, and the Python version of each beside it.

The extension is optional. It is built at installation when a C compiler is there, and ``WSTHREAD_SPEEDUPS=0`` in the
environment turns it off; :data:`active` and ``manager.stats()["speedups"]`` tell. Where nobody turned it off and it is
not there, :data:`missing` tells why, and the log of each process does. No other module knows of it.

What is written here is the Python version, and its docstring is the contract of both. When the extension is in use,
:func:`_or_c` puts what has the same name there in its place while this module is loaded, so a call costs nothing more.
For arguments of the annotated types both give the same results; ``tests/test_speedups.py`` gives both the same inputs.
Arguments of other types are wrong, and C always raises for them.

:func:`mask`, :func:`mask_in_place`, :func:`read_messages` and :func:`encode_message` are pure. The others read and
write sockets by way of a :func:`handle`. :func:`send_small` and :func:`send_each` send through a :class:`SendState`.

Opcodes are plain numbers here, since ``wsthread.wire`` stands on this module.
"""

from __future__ import annotations

import functools
import importlib
import os
import socket
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T", bound=Callable[..., Any])

#: What the functions of this module that read and write take for a socket; see :func:`handle`.
Handle: TypeAlias = Any

_INT_XOR_LIMIT = 1024  # Bytes from which on a table per byte of the key is faster than one large number.
_MASK_SIZE = 1 << 16  # Bytes that are masked in place at a time: a multiple of 4.
_BATCH = 64  # Messages that are read at once: more would only wait.
_TEXT_FRAME, _BINARY_FRAME = 0x81, 0x82  # First bytes of frames: FIN and the opcode (RFC 6455 5.2).
_MASKED = 0x80
_SMALL = 4096  # Bytes of a payload that is short for send_small().
# Plain ints: converting an enum member costs as much as a function call. macOS has no MSG_NOSIGNAL.
_DONT_WAIT = int(socket.MSG_DONTWAIT) | int(getattr(socket, "MSG_NOSIGNAL", 0))


def _load() -> tuple[ModuleType | None, str | None]:
    if os.environ.get("WSTHREAD_SPEEDUPS") == "0":
        return None, None
    try:
        return importlib.import_module("wsthread._speedups"), None
    except ImportError as error:  # Not built: there was no compiler, or there was no installation at all.
        return None, str(error)


#: Why the extension cannot be had; None when it is in use or turned off.
missing: str | None
_c, missing = _load()
#: Whether the extension is in use.
active = _c is not None
#: The Python version of each function and class, whether it is in use or not, by name. The others are in the extension.
python_versions: dict[str, Any] = {}


def _or_c(python_version: T) -> T:
    """Return what is in use instead of a Python version: the C version, or itself."""
    name = python_version.__name__
    python_versions[name] = python_version
    return python_version if _c is None else getattr(_c, name)


# Pure functions


@_or_c
def mask(payload: bytes, key: bytes) -> bytes:
    """XOR a payload with a masking key (RFC 6455 5.3); the same call unmasks.

    Raises:
        ValueError: the key has not 4 bytes.
    """
    _check_key(key)
    size = len(payload)
    if size < _INT_XOR_LIMIT:
        pad = (key * (size // 4 + 1))[:size]
        return (int.from_bytes(payload, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")
    result = bytearray(payload)
    for i in range(4):
        if key[i]:
            result[i::4] = result[i::4].translate(_xor_table(key[i]))
    return bytes(result)


@_or_c
def mask_in_place(buffer: bytearray | memoryview, key: bytes) -> None:
    """Do what :func:`mask` does where the bytes are.

    Raises:
        BufferError: the buffer is read-only or not in one piece.
        ValueError: the key has not 4 bytes.
    """
    _check_key(key)
    with memoryview(buffer) as view:
        if view.readonly or not view.c_contiguous:
            raise BufferError("the buffer is read-only or not in one piece")
        with view.cast("B") as whole:
            # Strides of a memoryview are slow, and so is memory for large copies.
            for start in range(0, len(whole), _MASK_SIZE):
                part = whole[start:start + _MASK_SIZE]
                part[:] = mask(bytes(part), key)


def _check_key(key: bytes) -> None:
    if len(key) != 4:
        raise ValueError("a masking key has 4 bytes")


@functools.cache
def _xor_table(byte: int) -> bytes:
    return bytes(i ^ byte for i in range(256))


@_or_c
def read_messages(
    buffer: bytes, start: int, max_size: int | None, message_type: type[tuple[Any, str | bytes]], text: Any,
    binary: Any,
) -> tuple[list[Any], int]:
    """Read the messages that begin at a place in a buffer, as long as there is nothing special about them.

    They are masked, not fragmented and not compressed, they have come whole, and text is UTF-8. At most 64 are read at
    once. What comes next is for the caller, who can also tell what is wrong with it.

    Args:
        buffer: bytes of a client.
        start: where a frame begins in it.
        max_size: the largest payload in bytes that is not special; None for no limit.
        message_type: a subclass of tuple, to be made of the opcode and the payload. Its constructor is not called.
        text: the opcode of messages whose payload is a str.
        binary: the opcode of messages whose payload is bytes.

    Returns:
        The messages, and where the last of them ends.

    Raises:
        ValueError: ``start`` is outside of the buffer, or ``max_size`` is negative.
    """
    size = len(buffer)
    if not 0 <= start <= size:
        raise ValueError("start is outside of the buffer")
    if max_size is not None and max_size < 0:
        raise ValueError("max_size is negative")
    messages: list[Any] = []
    while len(messages) < _BATCH and size - start >= 6:
        first, length = buffer[start], buffer[start + 1] - _MASKED
        if first not in (_TEXT_FRAME, _BINARY_FRAME) or length < 0:
            break
        key_at = start + 2
        if length > 125:
            key_at += 2 if length == 126 else 8
            length = int.from_bytes(buffer[start + 2:key_at], "big")
        payload_at = key_at + 4
        if length > size - payload_at or max_size is not None and length > max_size:
            break
        payload = mask(buffer[payload_at:payload_at + length], buffer[key_at:payload_at])
        try:
            content = (text, payload.decode()) if first == _TEXT_FRAME else (binary, payload)
        except UnicodeDecodeError:
            break
        messages.append(tuple.__new__(message_type, content))
        start = payload_at + length
    return messages, start


@_or_c
def encode_message(payload: Any) -> bytes | None:
    """Return a short message as one frame, unmasked as a server sends it.

    Returns:
        None unless the payload has less than 64 KiB and is a bytes or, but for instances of subclasses, an ASCII str.
    """
    if not _is_plain(payload, (1 << 16) - 1):
        return None
    first, data = (_TEXT_FRAME, payload.encode()) if isinstance(payload, str) else (_BINARY_FRAME, payload)
    length = len(data)
    if length < 126:
        return b"%c%c%b" % (first, length, data)
    return b"%c%c%b%b" % (first, 126, length.to_bytes(2, "big"), data)


def _is_plain(payload: Any, limit: int) -> bool:
    """Tell whether a payload has at most so many bytes, and C finds them where the payload is."""
    return (isinstance(payload, bytes) or type(payload) is str and payload.isascii()) and len(payload) <= limit


# Sockets


def handle(sock: socket.socket) -> Handle:
    """Return what the functions below take for a blocking socket: its number for C, the socket itself for Python.

    The number is -1 for a closed socket, and is another file's after the socket was closed. So get it again then.
    """
    return sock.fileno() if active else sock


#: Bytes to ask :func:`recv` for when many are coming. C takes memory when they are there, Python for all of it before.
LARGE_READ = 1 << 17 if active else 1 << 16


@_or_c
def recv(handle: Handle, size: int) -> bytes:
    """Wait for bytes and return at most ``size`` of them; ``b""`` at EOF.

    Raises:
        OSError: the connection broke, or the socket is closed.
        ValueError: ``size`` is less than 1.
    """
    _check_size(size)
    received: bytes = handle.recv(size)
    return received


@_or_c
def recv_into(handle: Handle, buffer: bytearray | memoryview) -> int:
    """Wait for bytes and put them into a writable buffer; return how many there are, 0 at EOF.

    Raises:
        OSError: the connection broke, or the socket is closed.
        ValueError: the buffer is empty.
    """
    _check_size(len(buffer))
    received: int = handle.recv_into(buffer)
    return received


@_or_c
def recv_now(handle: Handle, size: int) -> bytes | None:
    """Return at most ``size`` of the bytes that are there; None when there are none, and ``b""`` at EOF.

    It waits for nothing. The C version keeps the GIL: a thread that looks after many connections calls it for each, and
    would have to get the GIL again each time.

    Raises:
        OSError: the connection broke, or the socket is closed.
        ValueError: ``size`` is less than 1.
    """
    _check_size(size)
    try:
        received: bytes = handle.recv(size, _DONT_WAIT)
    except BlockingIOError:
        return None
    return received


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError("size is less than 1")


@_or_c
def send(handle: Handle, data: bytes | memoryview) -> int:
    """Write what the kernel takes now; return how many bytes that was, 0 when it takes none.

    Raises:
        OSError: the connection broke, or the socket is closed.
    """
    try:
        sent: int = handle.send(data, _DONT_WAIT)
    except BlockingIOError:
        return 0
    return sent


@_or_c
def send_both(handle: Handle, header: bytes, payload: bytes) -> int:
    """Do what :func:`send` does for two pieces of bytes, without a copy that joins them.

    Raises:
        OSError: the connection broke, or the socket is closed.
    """
    try:
        sent: int = handle.sendmsg((header, payload), (), _DONT_WAIT)
    except BlockingIOError:
        return 0
    return sent


# The usual case of sending


@_or_c
class SendState:
    """The base of a connection's sending half: what decides whether a frame may go straight to the socket.

    The send lock guards all of it and each write to the socket. A subclass sets all attributes before it is used, and
    has the methods, which are called while the send lock is held.

    Attributes:
        send_lock: what :func:`threading.Lock` returns.
        clear: whether nothing waits that a frame would overtake, and frames may still be sent.
        fd: the descriptor that frames may be written to as they are. -1: there is none, so the way is never clear.
        compressed_from: bytes of the shortest message that the peer wants compressed. It does not change.
        compression: in which way, as a number, if the same bytes do for all peers who want it so; else 0. Likewise.
        bytes_sent: bytes that the kernel took.
        messages_sent: messages that it took whole.
    """

    __slots__ = ("send_lock", "clear", "fd", "compressed_from", "compression", "bytes_sent", "messages_sent")

    send_lock: threading.Lock
    clear: bool
    fd: int
    compressed_from: int
    compression: int
    bytes_sent: int
    messages_sent: int

    def write_now(self, frame: bytes) -> int:
        """Write to the socket as :func:`send` does. Only the Python version calls it; C writes to ``fd``."""
        raise NotImplementedError

    def keep_rest(self, frame: bytes, sent: int) -> None:
        """Keep the rest of a frame of :func:`send_each` for later, and count what was sent and will be sent of it."""
        raise NotImplementedError

    def send_rest(self, frame: bytes, sent: int, timeout: float | None) -> None:
        """Wait until the rest of a frame of :func:`send_small` has left, and count what was sent and is sent of it."""
        raise NotImplementedError

    def broke(self, error: OSError) -> None:
        """Note that the connection broke when a frame was written."""
        raise NotImplementedError


@_or_c
def send_small(state: SendState, payload: Any, timeout: float | None) -> bool:
    """Send a short message if its way is clear.

    Its way is clear if nobody holds the send lock, the state is clear and has an ``fd``, and the peer does not want the
    message compressed. Short is what has at most 4096 bytes and what :func:`encode_message` encodes.

    Args:
        state: what to send it through.
        payload: the message.
        timeout: passed on to :meth:`SendState.send_rest`, when the kernel took a part of the frame.

    Returns:
        Whether it was sent. Else nothing of it was, because its way is not clear, the kernel takes nothing, or the
        connection broke.

    Raises:
        BaseException: what a method of the state raised. Then the connection's streams are shut down.
    """
    if not _is_plain(payload, _SMALL) or not _enter_clear(state, len(payload), 0):
        return False
    frame = encode_message(payload)
    assert frame is not None
    return _write_and_leave(state, frame, state.send_rest, timeout) > 0


@_or_c
def send_each(
    states: tuple[SendState, ...], frame: bytes, length: int, compression: int,
) -> tuple[int, list[int]]:
    """Send a message to each who wants it in this form and whose way is clear as for :func:`send_small`; wait for none.

    Args:
        states: what to send it through, each one once.
        frame: the message as a whole frame, not masked.
        length: bytes of the message before it was compressed.
        compression: in which way it is compressed; 0 when it is not.

    Returns:
        How many got all of it, and the indices of those who got nothing, in order. The others keep the rest of it.

    Raises:
        ValueError: a frame has at least 2 bytes.
        BaseException: the first that a method of a state raised, after all had their turn. The streams of that
            connection are shut down.
    """
    if len(frame) < 2:
        raise ValueError("a frame has at least 2 bytes")
    whole, missed, failure = 0, [], None
    for index, state in enumerate(states):
        try:
            sent = _write_and_leave(state, frame, state.keep_rest) if _enter_clear(state, length, compression) else 0
        except BaseException as error:
            failure = error if failure is None else failure
            continue
        if sent == len(frame):
            whole += 1
        elif not sent:
            missed.append(index)
    if failure is not None:
        raise failure
    return whole, missed


def _enter_clear(state: SendState, length: int, compression: int) -> bool:
    """Take the send lock if the way is clear for a message of so many bytes in this form; tell whether that was so."""
    is_compressed = length >= state.compressed_from
    if is_compressed != (compression != 0) or is_compressed and compression != state.compression:
        return False
    if not state.send_lock.acquire(False):
        return False
    if state.clear and state.fd >= 0:
        return True
    state.send_lock.release()
    return False


def _write_and_leave(state: SendState, frame: bytes, take_rest: Callable[..., None], *timeout: float | None) -> int:
    """Write a frame, count it and give the send lock back; return how many bytes left at once."""
    lock = state.send_lock
    try:
        try:
            sent = state.write_now(frame)
        except OSError as error:
            sent = 0
            state.broke(error)
        if sent == len(frame):
            state.bytes_sent += sent
            state.messages_sent += 1
        elif sent:
            take_rest(frame, sent, *timeout)
    except BaseException:  # The rest is lost, so nothing may follow.
        state.clear = False
        _shut_down(state.fd)
        raise
    finally:
        lock.release()
    return sent


def _shut_down(fd: int) -> None:
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            copy.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # It is closed, or the peer was faster.
