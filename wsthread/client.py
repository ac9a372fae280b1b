"""A small synchronous WebSocket client, for tests and for the command line.

::

    from wsthread import client

    with client.connect("wss://chat.example/ws", subprotocols=["chat.v1"]) as ws:
        ws.send("hello")
        print(ws.receive())

:func:`connect` opens a ``ws://`` or ``wss://`` URL and returns a :class:`ClientConnection`. :mod:`wsthread.testing`
makes one over a socketpair. No compression, no proxies, no redirects.

A connection has no thread of its own. It belongs to the one that calls it, and it reads only while it is called: each
call answers the Pings and the Close that have come, and keeps the messages that nobody has asked for yet, however many
these are. So a server that sends Pings takes a client for dead that makes no calls.

Every wait has a deadline on the monotonic clock and raises TimeoutError, see :mod:`wsthread.client_socket`.
"""

from __future__ import annotations

import base64
import secrets
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import TypeVar

from .client_socket import ClientSocket, open_tcp, open_unix, start_tls
from .exceptions import ConnectionClosed, HandshakeRefused, ProtocolError
from .wire.client_handshake import Answer, AnswerReader, check_answer, encode_request, parse_body, parse_url
from .wire.frames import CloseCode, Frame, Opcode, encode_frame
from .wire.messages import Message, MessageReader, Payload, to_octets
from .wire.protocol import Close, encode_close, parse_close

_MAX_BODY = 1 << 16  # Bytes of a refusal that are read.

_Self = TypeVar("_Self", bound="ClientConnection")


class ClientConnection:
    """The client's end of a WebSocket. It belongs to one thread, and answers Pings only while it is called.

    It is a context manager that closes it.

    Args:
        sock: a connected stream socket, plain or of TLS, behind the opening handshake; the connection owns it now.
        unread: bytes that came behind the 101.
        subprotocol: see below.
        headers: see below.
        timeout: see below. Default 10.
        max_message_size: bytes of the largest message to accept, None for no limit. Default 64 MiB.

    Attributes:
        subprotocol: the subprotocol agreed on, or None.
        headers: names and values of the server's 101, as they came.
        timeout: seconds that a call waits unless it is told otherwise.
        pings: how many Pings of the server came so far.
    """

    def __init__(
        self, sock: socket.socket, *, unread: bytes = b"", subprotocol: str | None = None,
        headers: Iterable[tuple[str, str]] = (), timeout: float = 10.0, max_message_size: int | None = 64 << 20,
    ) -> None:
        self.subprotocol = subprotocol
        self.headers = list(headers)
        self.timeout = timeout
        self.pings = 0
        self._ending: Close | None = None
        self._socket = ClientSocket(sock)
        self._reader = MessageReader(max_size=max_message_size, masked=False)
        self._reader.feed(unread)
        self._messages: deque[str | bytes] = deque()  # Those that came while something else was waited for.
        self._pong = b""  # The payload of the last one.
        self._close_sent = False
        self._unsent = memoryview(b"")  # What did not leave in time of a frame.

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None,
    ) -> None:
        """Close it; after an exception only drop it, so that nothing hides what went wrong."""
        if error is None:
            self.close()
        else:
            self._socket.close()

    @property
    def close_code(self) -> int | None:
        """None while it is open; then the code of the server's Close, 1005 for none, or 1006 when no Close came."""
        return None if self._ending is None else self._ending.code

    @property
    def close_reason(self) -> str | None:
        """None while it is open; then the server's reason, or "" without one."""
        return None if self._ending is None else self._ending.reason

    @property
    def closed(self) -> bool:
        """Whether this side has closed its socket. A connection that only the server has closed is still to be."""
        return self._socket.closed

    def fileno(self) -> int:
        """Return the descriptor of the socket, for who waits for several things at a time; -1 when it is closed.

        ``receive(timeout=0)`` has to have raised TimeoutError before: a message may have come already, and then the
        socket has nothing more to tell.
        """
        return self._socket.fileno()

    def send(self, payload: Payload, *, timeout: float | None = None) -> None:
        """Send a message.

        Args:
            payload: a str goes as text; bytes, bytearray or memoryview go as binary.
            timeout: seconds, None for those of the WebSocket.

        Raises:
            ConnectionClosed: the server has closed it.
            ProtocolError: the server broke RFC 6455; the connection is over.
            TimeoutError: the server does not read. The message may still leave during later calls.
            TypeError: the payload is neither str nor bytes-like.
        """
        opcode, octets = to_octets(payload)
        self._send(Frame(opcode, octets), self._deadline(timeout))

    def receive(self, timeout: float | None = None) -> str | bytes:
        """Return the next message: a str for text, bytes for binary.

        Args:
            timeout: seconds, None for those of the WebSocket.

        Raises:
            ConnectionClosed: there are no more; its code and reason are those of the server's Close.
            ProtocolError: the server broke RFC 6455; the connection is over.
            TimeoutError: none came in time.
        """
        deadline = self._deadline(timeout)
        while not self._messages:
            self._raise_if_closed()
            self._read(deadline)
        return self._messages.popleft()

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield messages until the server closes. Raises TimeoutError when one does not come in time."""
        while True:
            try:
                message = self.receive()
            except ConnectionClosed:
                return
            yield message

    def ping(self, timeout: float | None = None) -> None:
        """Send a Ping and wait for its Pong.

        The server's Pings are answered meanwhile, and messages kept for :meth:`receive`.

        Args:
            timeout: seconds, None for those of the WebSocket.

        Raises:
            ConnectionClosed: it is closed, or was instead.
            ProtocolError: the server broke RFC 6455; the connection is over.
            TimeoutError: there was no Pong in time.
        """
        deadline, payload = self._deadline(timeout), secrets.token_bytes(4)
        self._send(Frame(Opcode.PING, payload), deadline)
        while self._pong != payload:
            self._raise_if_closed()
            self._read(deadline)

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "", *, timeout: float | None = None) -> None:
        """Close it, unless the server did, and wait until the server has ended the connection (RFC 6455 7.1.1).

        Messages that come meanwhile can still be received. Nothing happens the second time.

        Args:
            code: 1000 to 1003, 1007 to 1014 or 3000 to 4999.
            reason: at most 123 bytes of UTF-8.
            timeout: seconds, None for those of the WebSocket.

        Raises:
            ProtocolError: the server broke RFC 6455; the connection is cut.
            TimeoutError: the server takes longer; the connection is cut.
            ValueError: the code may not be sent or the reason is too long.
        """
        encode_close(Close(code, reason))
        if self.closed:
            return
        deadline = self._deadline(timeout)
        try:
            self._take_arrived(deadline)
            self._send_close(Close(code, reason), deadline)
            while self._ending is None:
                self._read(deadline)
            while self._socket.recv(deadline):  # Nothing counts behind a Close, but the server ends the connection.
                pass
        finally:
            self._socket.close()

    def terminate(self) -> None:
        """Cut it without a Close, as a client does that loses its network. Nothing happens the second time."""
        self._socket.close()
        self._note_close(Close(CloseCode.ABNORMAL_CLOSURE))

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self.timeout if timeout is None else timeout)

    def closed_error(self, ending: Close) -> ConnectionClosed:
        """Return what calls raise that come too late; a subclass may tell more."""
        return ConnectionClosed(*ending)

    def _raise_if_closed(self) -> None:
        if self._ending is not None:
            raise self.closed_error(self._ending)

    def _send(self, frame: Frame, deadline: float) -> None:
        self._take_arrived(deadline)
        self._raise_if_closed()
        try:
            self._write(frame, deadline)
        except TimeoutError:
            raise TimeoutError("the server does not read") from None
        except OSError:
            while self._ending is None:  # What it said before it closed.
                self._read(deadline)
            self._raise_if_closed()

    def _write(self, frame: Frame, deadline: float) -> None:
        """Write a frame behind the one that did not leave in time; when that one still does not, drop the new one."""
        self._flush(deadline)
        self._unsent = memoryview(_masked(frame))
        self._flush(deadline)

    def _flush(self, deadline: float) -> None:
        """Write the rest of a frame; keep what comes meanwhile, for the server may read on only when that is taken."""
        arrived: list[bytes] = []
        try:
            while self._unsent:
                sent, received = self._socket.exchange(self._unsent, deadline)
                self._unsent = self._unsent[sent:]
                arrived.append(received)
        finally:
            self._reader.feed(b"".join(arrived))

    def _send_pong(self, payload: bytes, deadline: float) -> None:
        try:
            self._write(Frame(Opcode.PONG, payload), deadline)
        except OSError:
            pass  # The server closed, or does not read; whoever waits for it is going to see that.

    def _send_close(self, close: Close, deadline: float) -> None:
        """Write the Close, the first time, and whatever did not leave in time before it."""
        if not self._close_sent:
            self._close_sent = True
            self._unsent = memoryview(bytes(self._unsent) + _masked(Frame(Opcode.CLOSE, encode_close(close))))
        try:
            self._flush(deadline)
        except OSError:
            pass  # As with a Pong.

    def _read(self, deadline: float, reply_deadline: float | None = None) -> None:
        """Take the next frame or message, or the end of the connection; answer what wants an answer.

        Args:
            deadline: for what comes.
            reply_deadline: for the answer; None for the same one.
        """
        try:
            while (message := self._reader.next_message()) is None:
                data = self._socket.recv(deadline)
                if not data:
                    self._note_close(Close(CloseCode.ABNORMAL_CLOSURE))
                    return
                self._reader.feed(data)
            self._handle(message, deadline if reply_deadline is None else reply_deadline)
        except ProtocolError as error:
            self._fail(error)
            raise

    def _fail(self, error: ProtocolError) -> None:
        """End the connection with a server that broke the protocol (RFC 6455 7.1.7)."""
        self._send_close(Close(error.code, error.reason), time.monotonic())
        self._socket.close()
        self._note_close(Close(CloseCode.ABNORMAL_CLOSURE))

    def _handle(self, message: Message, deadline: float) -> None:
        opcode, payload = message
        if opcode in (Opcode.TEXT, Opcode.BINARY):
            self._messages.append(payload)
            return
        assert isinstance(payload, bytes)
        if opcode is Opcode.PING:
            self.pings += 1
            self._send_pong(payload, deadline)
        elif opcode is Opcode.PONG:
            self._pong = payload
        else:
            close = parse_close(payload)
            self._send_close(Close(close.code), deadline)
            self._note_close(close)

    def _take_arrived(self, reply_deadline: float) -> None:
        """Do what a client does that reads all the time, before it sends."""
        now = time.monotonic()
        try:
            while self._ending is None:
                self._read(now, reply_deadline)
        except TimeoutError:
            pass  # That was all.

    def _note_close(self, close: Close) -> None:
        if self._ending is None:
            self._ending = close


def _masked(frame: Frame) -> bytes:
    return encode_frame(frame, secrets.token_bytes(4))  # With a key that cannot be foreseen (RFC 6455 5.3, 10.3).


def connect(
    url: str,
    *,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    subprotocols: Sequence[str] = (),
    origin: str | None = None,
    timeout: float = 10.0,
    ssl_context: ssl.SSLContext | None = None,
    unix_path: str | None = None,
    max_message_size: int | None = 64 << 20,
) -> ClientConnection:
    """Open a WebSocket.

    Args:
        url: ``ws://`` or ``wss://``. A user and a password in it are sent as Basic Authorization.
        headers: more headers of the request. A Host or an Authorization replaces the one of the URL.
        subprotocols: those the client offers, the best first. Compression is not offered.
        origin: the value for Origin; None for none, as a client that is no browser.
        timeout: seconds to be open, and for each later call that is not told otherwise. The system's look-up of a
            host's name takes its own time. Default 10.
        ssl_context: for ``wss://``; None checks the server's certificate against the authorities that the system knows.
        unix_path: of a Unix socket to connect to, in place of the host and the port of the URL. Default None.
        max_message_size: bytes of the largest message to accept, None for no limit. Default 64 MiB.

    Returns:
        The open WebSocket; it is a context manager that closes it.

    Raises:
        HandshakeRefused: the server answered with another status than 101; the exception has the answer.
        ProtocolError: the answer is not HTTP, has no end, or is a 101 that does not belong to this request.
        ConnectionClosed: the server closed the connection before it had answered.
        TimeoutError: it took longer.
        OSError: nobody listens there; ssl.SSLError when TLS cannot be agreed on or the certificate is not trusted.
        ValueError: the URL, a header or a subprotocol cannot be one.
    """
    deadline = time.monotonic() + timeout
    target, key = parse_url(url), new_key()
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    request = encode_request(target, key, headers=pairs, subprotocols=subprotocols, origin=origin)
    if unix_path is None:
        sock = open_tcp(target.host, target.port, deadline)
    else:
        sock = open_unix(unix_path, deadline)
    try:
        if target.secure:
            sock = start_tls(sock, ssl_context or ssl.create_default_context(), target.host, deadline)
        stream, reader = ClientSocket(sock), AnswerReader()
        _send_request(stream, request, reader, deadline)
        answer, unread = _receive_answer(stream, reader, deadline)
        if answer.status != HTTPStatus.SWITCHING_PROTOCOLS:
            body = _receive_body(stream, answer, unread, deadline)
            raise HandshakeRefused(answer.status, answer.reason, answer.headers, body)
        subprotocol = check_answer(answer, key, subprotocols)
    except BaseException:
        sock.close()
        raise
    return ClientConnection(
        sock, unread=unread, subprotocol=subprotocol, headers=answer.headers, timeout=timeout,
        max_message_size=max_message_size)


def new_key() -> str:
    """Return a new Sec-WebSocket-Key."""
    return base64.b64encode(secrets.token_bytes(16)).decode()


def receive_answer(sock: socket.socket, timeout: float) -> tuple[Answer, bytes]:
    """Read the head of the answer to an opening handshake; return it with the bytes that came behind it.

    Args:
        sock: a connected stream socket, plain or of TLS; it does not block afterwards.
        timeout: seconds for the whole head.

    Raises:
        ProtocolError: it is not HTTP, or has no end.
        ConnectionClosed: the server closed the connection before it had answered.
        TimeoutError: it took longer.
    """
    return _receive_answer(ClientSocket(sock), AnswerReader(), time.monotonic() + timeout)


def _send_request(stream: ClientSocket, request: bytes, reader: AnswerReader, deadline: float) -> None:
    """Send the request, until there is an answer: a server may refuse a long one before it has read it all."""
    rest = memoryview(request)
    try:
        while rest and not reader.unread:
            sent, received = stream.exchange(rest, deadline)
            rest = rest[sent:]
            reader.feed(received)
    except TimeoutError:
        raise TimeoutError("the server did not read the opening handshake in time") from None
    except OSError:
        pass  # It may have answered before it closed.


def _receive_answer(stream: ClientSocket, reader: AnswerReader, deadline: float) -> tuple[Answer, bytes]:
    while (answer := reader.next_answer()) is None:
        try:
            data = stream.recv(deadline)
        except TimeoutError:
            raise TimeoutError("the server did not answer the opening handshake in time") from None
        if not data:
            raise ConnectionClosed(CloseCode.ABNORMAL_CLOSURE, "the server did not answer the opening handshake")
        reader.feed(data)
    return answer, reader.unread


def _receive_body(stream: ClientSocket, answer: Answer, data: bytes, deadline: float) -> bytes:
    """Read what comes in time of a refusal's body, at most ``_MAX_BODY`` bytes of it."""
    body, complete = parse_body(answer, data)
    while not complete and len(data) < _MAX_BODY:
        try:
            more = stream.recv(deadline)
        except TimeoutError:
            break
        if not more:
            break
        data += more
        body, complete = parse_body(answer, data)
    return body[:_MAX_BODY]
