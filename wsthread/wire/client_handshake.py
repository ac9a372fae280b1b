"""The opening handshake, client side (RFC 6455 4.1): a URL in, a request out; the answer in, what was agreed on out.

:func:`parse_url` says where to connect to, :func:`encode_request` what to send there, :class:`AnswerReader` reads what
comes back and :func:`check_answer` looks whether that opens a WebSocket. An answer with another status than 101 is a
refusal; :func:`parse_body` finds its text.

Everything that comes from the server has a bound here. Pure: bytes, strings and pairs in, values out.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from ..exceptions import ProtocolError
from .handshake import WEBSOCKET_VERSION, accept_key, tokens

#: Bytes that the head of an answer may have, interim answers included; servers send some hundred.
MAX_HEAD = 1 << 16
_DEFAULT_PORTS = {"ws": 80, "wss": 443}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_LINE_END = re.compile(rb"\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(r"HTTP/(\d\.\d) ([1-9]\d\d)(?: (.*))?")
_HTTP = b"HTTP/"
_TLS_ALERT = b"\x15\x03"  # How a server that expects TLS begins its answer to anything else (RFC 8446 5.1).
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\n]*)?\r?\n")
_RESERVED = "%/:?#[]@!$&'()*+,;="  # What a URL may hold besides letters, digits and "-._~" (RFC 3986 2).
# The handshake sets them itself, and the request has no body.
_OWN_HEADERS = frozenset({
    "upgrade", "connection", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol",
    "sec-websocket-extensions", "content-length", "transfer-encoding",
})


class Target(NamedTuple):
    """What a WebSocket URL says (RFC 6455 3).

    Attributes:
        secure: whether TLS is spoken.
        host: a name in ASCII or an address, without brackets.
        port: where to connect to.
        host_header: the value for Host: the host, and the port if it is not the default.
        resource: path and query, as they stand in the request.
        authorization: the value for Authorization that the user and the password in the URL make; None without them.
    """

    secure: bool
    host: str
    port: int
    host_header: str
    resource: str
    authorization: str | None


def parse_url(url: str) -> Target:
    """Read a WebSocket URL.

    What a URL must not hold, such as a space or an umlaut, is percent-encoded, as in a browser.

    Raises:
        ValueError: it is none; the message says why.
    """
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError(f"the URL of a WebSocket begins with ws:// or wss://, {url!r} does not")
    if not parts.hostname:
        raise ValueError(f"{url!r} names no host")
    if parts.fragment:
        raise ValueError(f"the URL of a WebSocket has no fragment, {url!r} has one (RFC 6455 3)")
    default_port = _DEFAULT_PORTS[parts.scheme]
    port = default_port if parts.port is None else parts.port
    try:
        host = parts.hostname.encode("ascii" if parts.hostname.isascii() else "idna").decode()
    except UnicodeError:
        raise ValueError(f"{parts.hostname!r} cannot be a host") from None
    host_header = f"[{host}]" if ":" in host else host
    if port != default_port:
        host_header += f":{port}"
    resource = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe=_RESERVED)
    authorization = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        authorization = f"Basic {base64.b64encode(credentials).decode()}"
    return Target(parts.scheme == "wss", host, port, host_header, resource, authorization)


def request_headers(key: str, subprotocols: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return the headers that make a request an opening handshake (RFC 6455 4.1).

    Args:
        key: 16 random bytes in base64.
        subprotocols: those to offer, the best first.
    """
    headers = [
        ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", WEBSOCKET_VERSION),
        ("Sec-WebSocket-Key", key)]
    if subprotocols:
        headers.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
    return headers


def encode_request(
    target: Target, key: str, *, headers: Iterable[tuple[str, str]] = (), subprotocols: Sequence[str] = (),
    origin: str | None = None,
) -> bytes:
    """Return the request that asks for a WebSocket.

    Args:
        target: what the URL said.
        key: 16 random bytes in base64.
        headers: more of them. A Host or an Authorization replaces the one of the URL.
        subprotocols: those to offer, the best first.
        origin: the value for Origin; None for none.

    Raises:
        ValueError: a header that the handshake sets itself or that cannot be one, or a subprotocol that cannot be one
            or is offered twice.
    """
    for name in subprotocols:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a subprotocol (RFC 6455 4.1)")
    if len(set(subprotocols)) < len(subprotocols):
        raise ValueError("a subprotocol is offered twice (RFC 6455 4.1)")
    more = list(headers)
    if origin is not None:
        more.append(("Origin", origin))
    names = {name.lower() for name, _ in more}
    if own := names & _OWN_HEADERS:
        raise ValueError(f"the handshake sets {', '.join(sorted(own))} itself")
    found = [("Host", target.host_header)] if "host" not in names else []
    if target.authorization is not None and "authorization" not in names:
        found.append(("Authorization", target.authorization))
    found += [*request_headers(key, subprotocols), *more]
    for name, value in found:
        if not _TOKEN.fullmatch(name) or any(character in value for character in "\r\n\0"):
            raise ValueError(f"{name!r}: {value!r} cannot be a header")
    lines = [f"GET {target.resource} HTTP/1.1", *(f"{name}: {value}" for name, value in found), "", ""]
    return "\r\n".join(lines).encode("latin-1")


class Answer(NamedTuple):
    """The head of a server's answer.

    Attributes:
        http_version: such as ``1.1``.
        status: such as 101.
        reason: the words after the status, possibly none.
        headers: names and values, as they came.
    """

    http_version: str
    status: int
    reason: str
    headers: list[tuple[str, str]]

    def header(self, name: str) -> str:
        """Return the value of a header; of more headers with this name the list that they make; "" without one."""
        return ", ".join(value for found, value in self.headers if found.lower() == name.lower())


class AnswerReader:
    """Bytes in, the head of the answer out. Interim answers are skipped (RFC 9110 15.2).

    Attributes:
        unread: what came behind the answer, once there is one: the first frames, or the body of a refusal.
    """

    __slots__ = ("unread", "_received")

    def __init__(self) -> None:
        self.unread = b""
        self._received = 0

    def feed(self, data: bytes) -> None:
        """Take more bytes from the wire."""
        self.unread += data
        self._received += len(data)

    def next_answer(self) -> Answer | None:
        """Return the answer, or None until more bytes are fed.

        Raises:
            ProtocolError: this is no HTTP, or more than :data:`MAX_HEAD` bytes come without an end.
        """
        while True:
            _check_beginning(self.unread)
            end = _HEAD_END.search(self.unread)
            if end is None:
                if self._received > MAX_HEAD:
                    raise ProtocolError(f"the head of the answer has no end within {MAX_HEAD} bytes")
                return None
            head, self.unread = self.unread[:end.start()], self.unread[end.end():]
            answer = _parse_head(head)
            if answer.status >= HTTPStatus.OK or answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
                return answer


def _check_beginning(data: bytes) -> None:
    """Refuse what is no HTTP as soon as that can be seen: nothing more may come."""
    if data[:len(_HTTP)] == _HTTP[:len(data)]:
        return
    if data.startswith(_TLS_ALERT):
        raise ProtocolError("the answer is not HTTP but TLS; such a server is reached with wss://")
    raise ProtocolError(f"the answer is not HTTP, it begins with {data[:40]!r}")


def _parse_head(head: bytes) -> Answer:
    first, *lines = (line.decode("latin-1") for line in _LINE_END.split(head))
    status_line = _STATUS_LINE.fullmatch(first)
    if status_line is None:
        raise ProtocolError(f"the answer begins with {first[:80]!r}, which is no status line")
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise ProtocolError(f"the answer has {line[:80]!r} among its headers")
        headers.append((name, value.strip(" \t")))
    http_version, status, reason = status_line.groups()
    return Answer(http_version, int(status), (reason or "").strip(), headers)


def check_answer(answer: Answer, key: str, subprotocols: Sequence[str] = ()) -> str | None:
    """Check that a 101 opens the WebSocket that was asked for (RFC 6455 4.1); return its subprotocol, None without one.

    Args:
        answer: with the status 101.
        key: the one of the request.
        subprotocols: those that were offered. No extension was.

    Raises:
        ProtocolError: it does not; the reason says what is wrong.
    """
    assert answer.status == HTTPStatus.SWITCHING_PROTOCOLS
    if answer.http_version == "1.0":
        raise ProtocolError("the answer is an HTTP/1.0 101, and HTTP/1.0 has none; a proxy may have changed it")
    upgrade = answer.header("Upgrade")
    if upgrade.lower() != "websocket":
        raise ProtocolError(f"the 101 has the Upgrade {upgrade!r}, it must be websocket")
    connection = answer.header("Connection")
    if "upgrade" not in (token.lower() for token in tokens(connection)):
        raise ProtocolError(f"the 101 has the Connection {connection!r}, it must hold Upgrade")
    accept = answer.header("Sec-WebSocket-Accept")
    if accept != accept_key(key):
        raise ProtocolError(f"the 101 has the Sec-WebSocket-Accept {accept!r}, which does not belong to our key")
    extensions = answer.header("Sec-WebSocket-Extensions")
    if extensions:
        raise ProtocolError(f"the server chose the extensions {extensions!r}, and none was offered")
    subprotocol = answer.header("Sec-WebSocket-Protocol") or None
    if subprotocol is not None and subprotocol not in subprotocols:
        raise ProtocolError(f"the server chose the subprotocol {subprotocol!r}, which was not offered")
    return subprotocol


def parse_body(answer: Answer, data: bytes) -> tuple[bytes, bool]:
    """Find the body of a refusal in what came behind its head (RFC 9112 6.3).

    Args:
        answer: the refusal.
        data: all that came behind it so far.

    Returns:
        The body as far as it came, and whether that is all; if not, it ends where the connection ends at the latest.
    """
    if answer.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return b"", True
    if "chunked" in answer.header("Transfer-Encoding").lower():
        return _join_chunks(data)
    length = answer.header("Content-Length")
    if re.fullmatch("[0-9]{1,18}", length):
        return data[:int(length)], len(data) >= int(length)
    return data, False


def _join_chunks(data: bytes) -> tuple[bytes, bool]:
    body, at = b"", 0
    while line := _CHUNK_SIZE.match(data, at):
        size = int(line.group(1), 16)
        if size == 0:
            return body, True
        body += data[line.end():line.end() + size]
        at = line.end() + size + len(b"\r\n")
    return body, False
