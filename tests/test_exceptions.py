"""The error tree: who is a kind of whom, what an error says, and a refusal as a WSGI application."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

import wsthread
from wsthread import exceptions
from wsthread.exceptions import (
    REFUSED_HEADER, BackplaneFull, ConnectionClosed, DetachError, HandshakeError, HandshakeRefused, InvalidJSON,
    InvalidPayload, MessageTooBig, ProtocolError, RateExceeded, WebSocketError,
)

TREE = [
    (WebSocketError, (Exception,)),
    (HandshakeError, (WebSocketError,)),
    (HandshakeRefused, (WebSocketError,)),
    (DetachError, (WebSocketError,)),
    (ProtocolError, (WebSocketError,)),
    (InvalidPayload, (ProtocolError,)),
    (RateExceeded, (ProtocolError,)),
    (MessageTooBig, (ProtocolError,)),
    (InvalidJSON, (WebSocketError, ValueError)),
    (BackplaneFull, (WebSocketError,)),
    (ConnectionClosed, (WebSocketError,)),
]


@pytest.mark.parametrize(("error", "bases"), TREE)
def test_tree(error: type[Exception], bases: tuple[type[Exception], ...]) -> None:
    """Each error is what the tree says, is public and is in the drawing."""
    assert error.__bases__ == bases
    assert getattr(wsthread, error.__name__) is error and error.__name__ in wsthread.__all__
    assert error.__name__ in (exceptions.__doc__ or "")


def test_tree_is_complete() -> None:
    """No error exists besides those of the table."""
    defined = {one for one in vars(exceptions).values() if isinstance(one, type) and issubclass(one, Exception)}
    assert defined == {error for error, _ in TREE}


@pytest.mark.parametrize(("error", "code"), [
    (ProtocolError, 1002), (InvalidPayload, 1007), (RateExceeded, 1008), (MessageTooBig, 1009)])
def test_protocol_errors(error: type[ProtocolError], code: int) -> None:
    """A violation knows the close code to fail the connection with (RFC 6455 7.4.1)."""
    assert error.code == code
    assert (error("why").code, error("why").reason, str(error("why"))) == (code, "why", "why")


@pytest.mark.parametrize(("args", "code", "reason", "text"), [
    ((), None, "", "closing"),
    ((None, "bye"), None, "bye", "closing: bye"),
    ((1000,), 1000, "", "closed with 1000"),
    ((4000, "bye"), 4000, "bye", "closed with 4000: bye"),
])
def test_connection_closed(args: tuple[Any, ...], code: int | None, reason: str, text: str) -> None:
    """It tells the code and the reason as far as they are known."""
    error = ConnectionClosed(*args)
    assert (error.code, error.reason, str(error)) == (code, reason, text)


def test_handshake_error_fields() -> None:
    """It keeps a copy of the headers."""
    headers = [("Retry-After", "5")]
    error = HandshakeError(HTTPStatus.SERVICE_UNAVAILABLE, "Come back later.", headers)
    headers.clear()
    assert error.status is HTTPStatus.SERVICE_UNAVAILABLE
    assert error.reason == "Come back later."
    assert error.headers == [("Retry-After", "5")]
    assert str(error) == "503 Service Unavailable: Come back later."


def answer(error: HandshakeError) -> tuple[str, list[tuple[str, str]], bytes]:
    """Run an error as a WSGI application under the validator of the standard library."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ["QUERY_STRING"] = ""  # The validator wants it.
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        started.append((status, headers))
        return lambda data: None

    application: Any = validator(error)
    iterable = application(environ, start_response)
    try:
        body = b"".join(iterable)
    finally:
        iterable.close()
    (status, headers), = started
    return status, headers, body


@pytest.mark.parametrize(("status", "reason", "headers", "line", "body"), [
    (HTTPStatus.BAD_REQUEST, "No.", (), "400 Bad Request", b"No.\n"),
    (HTTPStatus.FORBIDDEN, "", (), "403 Forbidden", b"\n"),
    (HTTPStatus.METHOD_NOT_ALLOWED, "GET!", [("Allow", "GET")], "405 Method Not Allowed", b"GET!\n"),
    (HTTPStatus.UPGRADE_REQUIRED, "caf\xe9", [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
     "426 Upgrade Required", b"caf\xc3\xa9\n"),
])
def test_handshake_error_answers(
    status: HTTPStatus, reason: str, headers: list[tuple[str, str]], line: str, body: bytes,
) -> None:
    """An instance is a valid WSGI application (PEP 3333), any number of times."""
    error = HandshakeError(status, reason, headers)
    expected = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    expected += [(REFUSED_HEADER, error.cause), *headers]
    for _ in range(2):
        assert answer(error) == (line, expected, body)


@pytest.mark.parametrize(("status", "cause", "expected"), [
    (HTTPStatus.FORBIDDEN, None, "origin"),
    (HTTPStatus.SERVICE_UNAVAILABLE, None, "limit"),
    (HTTPStatus.UNAUTHORIZED, None, "other"),
    (HTTPStatus.BAD_REQUEST, "key", "key"),
])
def test_handshake_error_cause(status: HTTPStatus, cause: str | None, expected: str) -> None:
    """A word for programs, in a header that no proxy adds."""
    error = HandshakeError(status, "No.", cause=cause)
    assert error.cause == expected
    assert ("Wsthread-Refused", expected) in answer(error)[1]


@pytest.mark.parametrize(("args", "text"), [
    ((403,), "403"),
    ((403, "Forbidden"), "403 Forbidden"),
    ((403, "Forbidden", [("Retry-After", "5")], b" No.\n"), "403 Forbidden: No."),
    ((502, "", (), b"caf\xe9" + b"x" * 1000), "502: caf\N{REPLACEMENT CHARACTER}" + "x" * 196),
])
def test_handshake_refused(args: tuple[Any, ...], text: str) -> None:
    """It shows the status and the beginning of the body, and keeps a copy of the headers."""
    error = HandshakeRefused(*args)
    assert str(error) == text
    given: tuple[Any, ...] = (*args, *(0, "", (), b"")[len(args):])
    status, reason, headers, body = given
    assert (error.status, error.reason, error.headers, error.body) == (status, reason, list(headers), body)


def test_invalid_json() -> None:
    """It keeps the message, which its text does not repeat."""
    error = InvalidJSON("{secret", "no name at 1")
    assert str(error) == "the message is no JSON: no name at 1"
    assert (error.message, error.reason) == ("{secret", "no name at 1")
