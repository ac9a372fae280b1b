"""Fuzzes what a client's request can do to the opening handshake and to the negotiation of compression.

An input is two octets of options and the fields of a request in the order of :data:`FIELDS`, separated by the octet
0xFF. As in WSGI, strings hold what latin-1 can say; line breaks are in them, though servers let none through.

What has to hold is in the functions from :func:`test_one_input` on. Run it with ``make fuzz``, or on one input with
``python tests/fuzz/fuzz_handshake.py FILE``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

import atheris
from runner import run

with atheris.instrument_imports(include=["wsthread"]):
    from wsthread.exceptions import HandshakeError
    from wsthread.wire.deflate import Agreement, Deflate, parse_extensions
    from wsthread.wire.handshake import (
        accept_key, check_origin, check_request, encode_response, response_headers, select_subprotocol, tokens,
    )

#: Those in lower case are request headers.
FIELDS = (
    "METHOD", "VERSION", "upgrade", "connection", "sec-websocket-version", "sec-websocket-key", "content-length",
    "transfer-encoding", "ORIGIN", "host", "PROTOCOLS", "EXTENSIONS", "EXTRA",
)
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
REQUEST = ("GET", "HTTP/1.1", "websocket", "keep-alive, Upgrade", "13", KEY)
STATUS_LINES = {"400 Bad Request", "403 Forbidden", "405 Method Not Allowed", "426 Upgrade Required"}
ORIGINS: tuple[Any, ...] = (
    None, "*", "https://a.example", re.compile(r"https://\w+\.example"), [], ["null", re.compile("http:.*")],
    lambda origin: origin.startswith("app:"), ["https://a.example", "*"],
    ["same-origin", "https://*.example", "http://localhost:*"],
)
SUPPORTED = ("chat.v2", "chat", "b", "é")
DEFLATES = (
    Deflate(), Deflate(server_context_takeover=True), Deflate(client_context_takeover=True),
    Deflate(server_context_takeover=True, client_context_takeover=True, server_max_window_bits=9),
    Deflate(server_max_window_bits=12, client_max_window_bits=8), Deflate(client_max_window_bits=11),
)
#: What a parameter of an offer may be: its values, None for a bare one (RFC 7692 7.1).
WINDOW_BITS = {str(bits) for bits in range(8, 16)}
PARAMETERS: dict[str, set[str | None]] = {
    "server_no_context_takeover": {None}, "client_no_context_takeover": {None},
    "server_max_window_bits": {*WINDOW_BITS}, "client_max_window_bits": {*WINDOW_BITS, None},
}


WORDS = [*REQUEST, *PARAMETERS, *SUPPORTED[:3], "permessage-deflate", "; ", ", ", "=10", "http://", "https://", "null"]


def test_one_input(data: bytes) -> None:
    """Check one input; anything but a HandshakeError is a finding."""
    texts = [text.decode("latin-1") for text in data[2:].split(b"\xff")]
    fields = {**dict.fromkeys(FIELDS, ""), **dict(zip(FIELDS, texts))}
    options = int.from_bytes(data[:2], "big")
    headers = {name: value for name, value in fields.items() if name.islower() and value}
    key = _check_request(fields["METHOD"], fields["VERSION"], headers)
    _check_origin(fields["ORIGIN"], fields["host"], ORIGINS[options % len(ORIGINS)])
    offered = _check_tokens(fields["PROTOCOLS"])
    subprotocol = select_subprotocol(offered, SUPPORTED)
    assert subprotocol == next((name for name in SUPPORTED if name in offered), None)
    extension = _check_negotiation(fields["EXTENSIONS"], DEFLATES[options // len(ORIGINS) % len(DEFLATES)])
    _check_response(key or KEY, subprotocol, extension, fields["EXTRA"])


def _check_request(method: str, version: str, headers: dict[str, str]) -> str | None:
    try:
        key = check_request(method, version, headers)
    except HandshakeError as error:
        _check_refusal(error)
        return None
    # RFC 6455 4.2.1, by other means.
    assert method == "GET" and version == "HTTP/1.1" and headers["host"]
    for name, token in ("upgrade", "websocket"), ("connection", "upgrade"):
        assert re.search(rf"(?:^|,)[ \t]*{token}[ \t]*(?:$|,)", headers[name], re.I)
    assert headers["sec-websocket-version"] == "13"
    assert re.fullmatch(r"[A-Za-z0-9+/]{22}==", key) and key == headers["sec-websocket-key"]
    assert headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    assert len(base64.b64decode(accept_key(key), validate=True)) == 20
    return key


def _check_refusal(error: HandshakeError) -> None:
    """It has to be a WSGI response without line breaks in its headers."""
    answers: list[tuple[str, list[tuple[str, str]]]] = []
    body = b"".join(error({}, lambda status, headers: answers.append((status, headers))))
    (status, headers), = answers
    assert status in STATUS_LINES, status
    assert ("Content-Length", str(len(body))) in headers
    assert not any("\r" in text or "\n" in text for header in headers for text in header)
    assert body.decode().endswith("\n")


def _check_origin(origin: str, host: str, origins: Any) -> None:
    try:
        check_origin(origin, host, origins)
    except HandshakeError as error:
        _check_refusal(error)
        assert origins != "*"
    else:
        if origins is None:
            # Whatever else the two hold, one host name is in both.
            seen, sent_to = (re.sub(r"[\t\r\n]", "", text).lower() for text in (origin, host))
            scheme, _, seen = seen.lstrip("".join(map(chr, range(33)))).partition("://")
            assert scheme in ("http", "https", "ws", "wss")
            names = set(re.findall(r"[^/?#@:\[\]]+", seen)) & set(re.findall(r"[^/?#@:\[\]]+", sent_to))
            assert names, (origin, host)
        elif isinstance(origins, str):
            assert origins in ("*", origin.lower().removesuffix("/"))
    check_origin(None, host, origins)


def _check_tokens(value: str) -> list[str]:
    found = tokens(value)
    assert all(one and one == one.strip(" \t") and "," not in one for one in found)
    assert tokens(",".join(found)) == found == tokens(f" ,{value},\t")
    return found


def _check_negotiation(value: str, deflate: Deflate) -> str | None:
    """What is agreed on has to answer the first offer that can be kept, and none if there is no such offer."""
    offers = parse_extensions(value)
    assert all(name for name, _ in offers)
    agreement = deflate.negotiate(offers)
    accepted = next((parameters for name, parameters in offers if _can_be_kept(name, parameters, deflate)), None)
    assert (agreement is None) == (accepted is None), (offers, agreement)
    if agreement is None or accepted is None:
        return None
    (name, parameters), = parse_extensions(agreement.extension)
    answer, offer = dict(parameters), dict(accepted)
    assert name == "permessage-deflate" and len(answer) == len(parameters)
    assert all(one in PARAMETERS and text in PARAMETERS[one] for one, text in parameters)
    _check_answer(offer, answer, agreement, deflate)
    return agreement.extension


def _can_be_kept(name: str, parameters: list[tuple[str, str | None]], deflate: Deflate) -> bool:
    offer = dict(parameters)
    return (
        name == "permessage-deflate"
        and len(offer) == len(parameters)
        and all(one in PARAMETERS and value in PARAMETERS[one] for one, value in parameters)
        and offer.get("server_max_window_bits") != "8"  # zlib cannot.
    )


def _check_answer(
    offer: dict[str, str | None], answer: dict[str, str | None], agreement: Agreement, deflate: Deflate,
) -> None:
    # RFC 7692 7.1.1.1, 7.1.1.2: a client that asks for it gets it; a server may impose it.
    for side in "server", "client":
        name = f"{side}_no_context_takeover"
        takeover = getattr(agreement, f"{side}_context_takeover")
        assert (name in answer) != takeover
        assert takeover == (name not in offer and getattr(deflate, f"{side}_context_takeover"))
    # 7.1.2.1: as small as asked for, or smaller.
    bits = agreement.server_max_window_bits
    assert bits == int(answer.get("server_max_window_bits") or 15) <= deflate.server_max_window_bits
    assert "server_max_window_bits" in answer or "server_max_window_bits" not in offer
    assert bits <= int(offer.get("server_max_window_bits") or 15)
    # 7.1.2.2: only if the client allows it.
    assert "client_max_window_bits" in offer or "client_max_window_bits" not in answer
    assert answer.get("client_max_window_bits", "") is not None
    bits = agreement.client_max_window_bits
    assert bits == int(answer.get("client_max_window_bits") or 15)
    assert bits <= int(offer.get("client_max_window_bits") or 15)
    assert "client_max_window_bits" not in offer or bits <= deflate.client_max_window_bits


def _check_response(key: str, subprotocol: str | None, extension: str | None, extra: str) -> None:
    headers = [*response_headers(key, subprotocol, extension), ("X-Extra", extra), (extra, "x")]
    try:
        data = encode_response(headers)
    except ValueError:
        assert "\r" in extra or "\n" in extra
        headers = headers[:-2]
        data = encode_response(headers)
    lines = data.decode("latin-1").split("\r\n")
    assert lines[0].startswith("HTTP/1.1 101 ")
    assert lines[1:] == [*(f"{name}: {value}" for name, value in headers), "", ""], "a header of the client's making"
    assert not any("\r" in line or "\n" in line for line in lines)


def _seeds() -> Iterator[bytes]:
    offers = [
        "", "permessage-deflate", "permessage-deflate; client_max_window_bits", "x-webkit-deflate-frame",
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10",
        'permessage-deflate; server_max_window_bits="9"; client_max_window_bits="8"',
        "permessage-deflate; server_max_window_bits=8, permessage-deflate", 'a; b="x;y,z", permessage-deflate ; ',
        "permessage-deflate; client_max_window_bits=15; client_max_window_bits=15", 'permessage-deflate; x="',
    ]
    requests: list[tuple[str, ...]] = [
        REQUEST, ("POST", *REQUEST[1:]), ("get", *REQUEST[1:]), ("GET", "HTTP/2", *REQUEST[2:]),
        ("GET", "HTTP/1.0", *REQUEST[2:]), (*REQUEST[:4], "8", KEY), (*REQUEST[:5], KEY[:-4]),
        (*REQUEST[:5], "é" + KEY[1:]), (*REQUEST, "5"), (*REQUEST, "0", "chunked"),
        ("GET", "HTTP/1.1", "h2c", "Upgrade"), ("GET", "HTTP/1.1", "websocket", "close"),
    ]
    origins = [
        ("https://a.example", "a.example"), ("http://a.example:80", "A.example"), ("null", "a.example"),
        ("http://[::1]:8000", "[::1]:8000"), ("http://a.example:x", "a.example"), ("file:///", ""),
        ("http://b@a.example", "a.example:80"), ("app://x", "a.example:99999"), ("http://a.example.b", "a.example"),
    ]
    for i in range(len(DEFLATES)):
        for offer in offers:
            yield _seed(i * len(ORIGINS) + 1, (*REQUEST, "", "", *origins[i], "chat, b", offer, "value"))
    for i, request in enumerate(requests):
        yield _seed(i * 37, (*request, *[""] * (8 - len(request)), *origins[i % len(origins)], "é,,x", offers[2]))
    for i, (origin, host) in enumerate(origins):
        yield _seed(i, (*REQUEST, "", "", origin, host, "chat.v2", offers[1], "a\r\nb"))
        yield _seed(0, (*REQUEST, "0", "", origin, host, "", "", "a\nb"))


def _seed(options: int, fields: tuple[str, ...]) -> bytes:
    return options.to_bytes(2, "big") + b"\xff".join(field.encode("latin-1") for field in fields)


if __name__ == "__main__":
    run("handshake", test_one_input, _seeds(), max_length=600, words=WORDS)
