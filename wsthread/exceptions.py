"""The error tree. The type of an error says whose fault it is, its fields carry the evidence.

::

    WebSocketError
    ├── HandshakeError        the HTTP request cannot become a WebSocket; is itself the WSGI answer
    ├── HandshakeRefused      the server refused ours; has its HTTP answer (clients only)
    ├── DetachError           the WSGI server shows no socket that could be taken
    ├── ProtocolError         the peer broke RFC 6455 (Close 1002)
    │   ├── InvalidPayload    text or a close reason that is not UTF-8 (Close 1007)
    │   ├── RateExceeded      more than the configured rate (Close 1008)
    │   └── MessageTooBig     more than the configured limit (Close 1009)
    ├── InvalidJSON           a message that is no JSON; the connection stays open
    ├── BackplaneFull         too much waits for the other processes; those of this one have the message
    └── ConnectionClosed      the connection is closing or closed

A deadline that passes raises the builtin :exc:`TimeoutError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, ClassVar

REFUSED_HEADER = "Wsthread-Refused"
"""The header of each refusal. Its value is the cause in a word; an answer without it came from elsewhere."""
# :attr:`HandshakeError.cause` of a status, unless it is given.
_CAUSES = {400: "request", 403: "origin", 405: "method", 426: "upgrade", 429: "limit", 501: "server", 503: "limit"}


class WebSocketError(Exception):
    """Base of all errors of this package."""


class HandshakeError(WebSocketError):
    """The request is refused before any 101 (RFC 6455 4.2.1, 4.2.2).

    An instance is a WSGI application that sends the refusal.

    Attributes:
        status: the HTTP status to answer with.
        reason: one sentence for the operator or the client's author; the body of the answer.
        headers: headers the status asks for, such as ``Sec-WebSocket-Version``.
        cause: the reason in one word, for programs, such as ``origin``: the value of the header
            :data:`~wsthread.exceptions.REFUSED_HEADER`.
    """

    def __init__(
        self, status: HTTPStatus, reason: str, headers: Iterable[tuple[str, str]] = (), *, cause: str | None = None,
    ) -> None:
        self.status = status
        self.reason = reason
        self.headers = list(headers)
        self.cause = _CAUSES.get(status, "other") if cause is None else cause
        super().__init__(status, reason, self.headers)

    def __str__(self) -> str:
        return f"{self.status.value} {self.status.phrase}: {self.reason}"

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer as a WSGI application (PEP 3333)."""
        body = f"{self.reason}\n".encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))),
            (REFUSED_HEADER, self.cause)]
        start_response(f"{self.status.value} {self.status.phrase}", headers + self.headers)
        return [body]


class HandshakeRefused(WebSocketError):
    """The server answered a client's opening handshake, but not with a 101 (RFC 6455 4.1).

    Attributes:
        status: the HTTP status, such as 403.
        reason: the words after the status, possibly none.
        headers: names and values, as they came.
        body: the body, or its beginning when it is long or did not come in time.
    """

    def __init__(
        self, status: int, reason: str = "", headers: Iterable[tuple[str, str]] = (), body: bytes = b"",
    ) -> None:
        self.status = status
        self.reason = reason
        self.headers = list(headers)
        self.body = body
        super().__init__(status, reason, self.headers, body)

    def __str__(self) -> str:
        status = f"{self.status} {self.reason}".rstrip()
        text = self.body.decode(errors="replace")[:200].strip()
        return f"{status}: {text}" if text else status


class DetachError(WebSocketError):
    """The WSGI server gives no access to its socket, or shares it among requests."""


class ProtocolError(WebSocketError):
    """The peer broke RFC 6455; the connection is failed (RFC 6455 7.1.7).

    Attributes:
        code: the close code to fail the connection with, a :class:`~wsthread.CloseCode` value.
        reason: what the peer did, in words.
    """

    code: ClassVar[int] = 1002

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class InvalidPayload(ProtocolError):
    """Text that is not UTF-8 (RFC 6455 8.1)."""

    code = 1007


class RateExceeded(ProtocolError):
    """More control frames and empty fragments than ``max_control_rate`` allows."""

    code = 1008


class MessageTooBig(ProtocolError):
    """A message larger than ``max_message_size``."""

    code = 1009


class InvalidJSON(WebSocketError, ValueError):
    """A message that was to be JSON and is not (RFC 8259).

    Attributes:
        message: what came, as it is.
        reason: what is wrong with it.
    """

    def __init__(self, message: str | bytes, reason: str) -> None:
        super().__init__(message, reason)
        self.message = message
        self.reason = reason

    def __str__(self) -> str:
        return f"the message is no JSON: {self.reason}"


class BackplaneFull(WebSocketError):
    """Too much waits to leave for the other processes, or the message is too large for them.

    The connections of this process have been served already.
    """


class ConnectionClosed(WebSocketError):
    """The connection is closing or closed: nothing more can be received or sent.

    Attributes:
        code: the close code (see :attr:`wsthread.Connection.close_code`); None while the closing
            handshake is still under way.
        reason: the close reason, possibly empty.
    """

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        text = "closing" if self.code is None else f"closed with {self.code}"
        return f"{text}: {self.reason}" if self.reason else text
