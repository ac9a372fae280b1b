"""The opening handshake, server side (RFC 6455 4.2): request headers in, the headers of a 101 out.

Whatever keeps a request from becoming a WebSocket is a HandshakeError with its HTTP status and a sentence that
tells its reader what to change. Pure: mappings and strings in, values out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus

from ..exceptions import HandshakeError
from .origins import Origins, advice, is_allowed

WEBSOCKET_VERSION = "13"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_PROXY_HINT = (
    "If a proxy stands in front of this server, let it pass the header on (nginx: proxy_http_version 1.1; "
    'proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";).'
)


def tokens(value: str) -> list[str]:
    """Split a header that holds a comma-separated list (RFC 9110 5.6.1)."""
    return [token for token in (part.strip(" \t") for part in value.split(",")) if token]


def accept_key(key: str) -> str:
    """Return the Sec-WebSocket-Accept that proves the key was read (RFC 6455 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def check_request(method: str, http_version: str, headers: Mapping[str, str]) -> str:
    """Check what makes a request an opening handshake (RFC 6455 4.2.1); return its Sec-WebSocket-Key.

    Args:
        method: the HTTP method.
        http_version: as in ``SERVER_PROTOCOL``, such as ``HTTP/1.1``.
        headers: the request headers, their names in lower case.

    Raises:
        HandshakeError: 405, 400 or 426; see its reason.
    """
    if not http_version.startswith("HTTP/1."):
        # One socket carries many HTTP/2 streams, so none of them can have it.
        raise HandshakeError(
            HTTPStatus.BAD_REQUEST,
            f"A WebSocket is opened with HTTP/1.1, not {http_version}. Turn HTTP/2 off between proxy and server.",
            cause="http-version")
    if method != "GET":
        raise HandshakeError(
            HTTPStatus.METHOD_NOT_ALLOWED, f"A WebSocket is opened with GET, not {method}.", [("Allow", "GET")])
    _require_token(headers, "Upgrade", "websocket")
    _require_token(headers, "Connection", "Upgrade")
    if http_version != "HTTP/1.1":
        raise HandshakeError(
            HTTPStatus.BAD_REQUEST, f"A WebSocket is opened with HTTP/1.1, not {http_version}. {_PROXY_HINT}",
            cause="http-version")
    if not headers.get("host"):
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "The request has no Host.", cause="host")
    if headers.get("content-length", "0") not in ("", "0") or headers.get("transfer-encoding"):
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "The opening handshake has no body.", cause="body")
    version = headers.get("sec-websocket-version", "")
    if version != WEBSOCKET_VERSION:
        raise HandshakeError(
            HTTPStatus.UPGRADE_REQUIRED,
            f"Sec-WebSocket-Version is {version!r}, this server speaks {WEBSOCKET_VERSION}.",
            [("Upgrade", "websocket"), ("Sec-WebSocket-Version", WEBSOCKET_VERSION)], cause="version")
    key = headers.get("sec-websocket-key", "")
    if not _is_valid_key(key):
        raise HandshakeError(
            HTTPStatus.BAD_REQUEST, f"Sec-WebSocket-Key is {key[:64]!r}, it must be 16 bytes in base64.",
            cause="key")
    return key


def _require_token(headers: Mapping[str, str], name: str, token: str) -> None:
    value = headers.get(name.lower(), "")
    if value.lower() == token.lower() or token.lower() in map(str.lower, tokens(value)):
        return
    found = f"is {value[:64]!r}" if value else "is missing"
    raise HandshakeError(
        HTTPStatus.UPGRADE_REQUIRED,
        f'This address speaks WebSocket: the request needs "{name}: {token}", but {name} {found}. {_PROXY_HINT}',
        [("Upgrade", "websocket")], cause=name.lower())


def _is_valid_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key.encode("ascii"), validate=True)) == 16
    except (binascii.Error, UnicodeEncodeError):
        return False


def check_origin(origin: str | None, host: str, origins: Origins, forwarded_host: str | None = None) -> None:
    """Refuse a page of another site (RFC 6455 4.2.2, 10.2); see :mod:`.origins`.

    Args:
        origin: the Origin header; None when there is none, as with clients that are no browsers, which pass.
        host: the host and port that the request was sent to, as in the Host header.
        origins: None allows the same host and port only; ``"*"`` any; a string or a compiled pattern, or a list
            of them, the origins that match in full; a callable those it returns true for.
        forwarded_host: X-Forwarded-Host. It allows nobody; it tells what is wrong.

    Raises:
        HandshakeError: 403, with both values in its reason.
    """
    if origin is None or is_allowed(origin, host, origins):
        return
    reason = (
        f"Origin is {origin[:256]!r}, the request was sent to {host[:256]!r}; the option origins (Flask: "
        f"WSTHREAD_ORIGINS) does not allow such a page. {advice(origin, host, origins, forwarded_host)}")
    raise HandshakeError(HTTPStatus.FORBIDDEN, reason.rstrip())


def select_subprotocol(offered: Sequence[str], supported: Sequence[str], required: bool = False) -> str | None:
    """Return the first supported subprotocol that the client offered, or None (RFC 6455 4.2.2).

    Raises:
        HandshakeError: 400, when there is none and one is required.
    """
    selected = next((name for name in supported if name in offered), None)
    if selected is None and required:
        found = f"is {', '.join(offered)[:256]!r}" if offered else "is missing"
        raise HandshakeError(
            HTTPStatus.BAD_REQUEST,
            f"This address speaks {' or '.join(supported)} only (the options subprotocols and require_subprotocol), "
            f'and Sec-WebSocket-Protocol {found}. In a browser: new WebSocket(url, ["{supported[0]}"]).',
            cause="subprotocol")
    return selected


def check_subprotocols(names: Iterable[str]) -> tuple[str, ...]:
    """Return the supported subprotocols, and refuse names that no client could offer.

    Raises:
        TypeError: they are no list of strings.
        ValueError: a name that Sec-WebSocket-Protocol cannot carry.
    """
    if isinstance(names, str):
        raise TypeError("subprotocols is a list of names, not one str")
    several = tuple(names) if isinstance(names, Iterable) else (None,)
    for name in several:
        if not isinstance(name, str):
            raise TypeError(f"subprotocols is {names!r}, it must be a list of names")
        if tokens(name) != [name] or not name.isascii() or not name.isprintable():
            raise ValueError(
                f"subprotocols has {name!r}, which no client can offer; a name has neither commas nor blanks around it")
    return tuple(map(str, several))


def response_headers(key: str, subprotocol: str | None, extension: str | None = None) -> list[tuple[str, str]]:
    """Return the headers that make a response a 101 for this key (RFC 6455 4.2.2)."""
    headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept_key(key))]
    if subprotocol is not None:
        headers.append(("Sec-WebSocket-Protocol", subprotocol))
    if extension is not None:
        headers.append(("Sec-WebSocket-Extensions", extension))
    return headers


def encode_response(headers: Iterable[tuple[str, str]]) -> bytes:
    """Return the 101 as bytes.

    Raises:
        ValueError: a header holds a line break.
    """
    lines = ["HTTP/1.1 101 Switching Protocols", *[f"{name}: {value}" for name, value in headers], "", ""]
    head = "\r\n".join(lines)
    if not head.count("\r") == head.count("\n") == len(lines) - 1:
        raise ValueError("a response header holds a line break")
    return head.encode("latin-1")
