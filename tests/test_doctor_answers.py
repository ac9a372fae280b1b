"""What an answer tells: who wrote it, and what is wrong."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import pytest

from wsthread.doctor.answers import Answer, author, is_ours, judge_answer
from wsthread.exceptions import REFUSED_HEADER, HandshakeError
from wsthread.wire.handshake import check_origin, check_request, select_subprotocol

GOOD = {
    "upgrade": "websocket", "connection": "Upgrade", "host": "a", "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
NGINX = "<html>\r\n<body>\r\n<center><h1>{0}</h1></center>\r\n<hr><center>nginx/1.22.1</center>\r\n</body>\r\n</html>"
HAPROXY = "<html><body><h1>503 Service Unavailable</h1>\nNo server is available.\n</body></html>\n"
GUNICORN = (
    "<html>\n  <head>\n    <title>Bad Request</title>\n  </head>\n  <body>\n    <h1><p>Bad Request</p></h1>\n"
    "    {0}\n  </body>\n</html>\n")


def refusal(call: Any, *arguments: Any) -> Answer:
    """Return the answer that an error of ours makes, as a client gets it."""
    with pytest.raises(HandshakeError) as caught:
        call(*arguments)
    head: list[Any] = []
    body = b"".join(caught.value({}, lambda *found: head.extend(found)))
    return Answer(int(head[0][:3]), head[1], body.decode(), "ws://a/ws")


def limited(text: str, status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE, cause: str | None = None) -> None:
    raise HandshakeError(status, text, cause=cause)


OURS = [
    ("upgrade-lost", check_request, "GET", "HTTP/1.1", {**GOOD, "upgrade": ""}),
    ("upgrade-lost", check_request, "GET", "HTTP/1.0", {**GOOD, "upgrade": "", "connection": "close"}),
    ("connection-lost", check_request, "GET", "HTTP/1.1", {**GOOD, "connection": "keep-alive"}),
    ("http-1.0", check_request, "GET", "HTTP/1.0", GOOD),
    ("http-2-upstream", check_request, "GET", "HTTP/2", GOOD),
    ("handshake-changed", check_request, "GET", "HTTP/1.1", {**GOOD, "sec-websocket-key": "x"}),
    ("handshake-changed", check_request, "GET", "HTTP/1.1", {**GOOD, "sec-websocket-version": "8"}),
    ("refused", check_request, "GET", "HTTP/1.1", {**GOOD, "content-length": "5"}),
    ("port-dropped", check_origin, "http://a:8000", "a", None),
    ("host-changed", check_origin, "http://a", "backend", None),
    ("host-changed", check_origin, "http://a", "a", ["https://b"]),
    ("subprotocol", select_subprotocol, [], ["chat"], True),
    ("connection-limit", limited, "No more connections: max_connections is 1."),
    ("per-address", limited, "No more connections: max_connections_per_address is 1.", HTTPStatus.TOO_MANY_REQUESTS),
    ("stopping", limited, "No more connections: the server is stopping."),
    ("threads-limit", limited, "No more connections: no thread can be started (can't start new thread)."),
    ("open-files", limited, "No more connections: Too many.", HTTPStatus.SERVICE_UNAVAILABLE, "descriptors"),
    ("server-cannot", limited, "Granian shows no socket.", HTTPStatus.NOT_IMPLEMENTED),
]


@pytest.mark.parametrize(("name", "arguments"), [(one[0], one[1:]) for one in OURS])
def test_ours(name: str, arguments: Any) -> None:
    """What our own code says is understood, also by those who know the sentences only."""
    answer = refusal(*arguments)
    assert is_ours(answer)
    found = judge_answer(answer)
    assert found.name == name and answer.body.strip() in found.symptom


def test_unknown_cause() -> None:
    """A sentence of another version is quoted as it is."""
    answer = Answer(418, [(REFUSED_HEADER.lower(), "tea")], "A new sentence.\n", "ws://a/")
    assert judge_answer(answer).name == "refused" and "418: A new sentence." in judge_answer(answer).symptom
    assert not is_ours(answer._replace(headers=[]))


def text(status: int, body: str = "", **headers: str) -> Answer:
    return Answer(status, list(headers.items()), body, "ws://a/ws?x=1")


OTHERS = [
    ("proxy-auth", text(401, NGINX)), ("login-required", text(401, "who are you")),
    ("proxy-forbids", text(403, NGINX)), ("forbidden", text(403, "not you")), ("asgi-wrapper", text(403)),
    ("proxy-path", text(404, NGINX)), ("proxy-path", text(404, "404 page not found\n")),
    ("not-found", text(404, "<h1>Not Found</h1>")),
    ("upstream-down", text(502, NGINX)), ("upstream-down", text(502, "", Server="Caddy")),
    ("upstream-down", text(502, "Bad Gateway")), ("upstream-slow", text(504, NGINX)),
    ("no-upstream", text(503, HAPROXY)), ("proxy-limit", text(503, NGINX)), ("unavailable", text(503, "busy")),
    ("application-fails", text(500, "<h1>Internal Server Error</h1>")), ("no-websocket-here", text(200, "hello")),
    ("unexpected", text(402, "pay")), ("unexpected", text(204)),
    ("tls-expected", text(400, "The plain HTTP request was sent to HTTPS port " + NGINX)),
    ("client-certificate", text(400, "No required SSL certificate was sent " + NGINX)),
    ("proxy-protocol", text(400, GUNICORN.format("Invalid Request Line &#x27;Invalid HTTP request line: &#x27;"))),
    ("proxy-protocol", text(400, GUNICORN.format("Invalid request line &#x27;PROXY TCP4"))),
    ("proxy-protocol", text(400, GUNICORN.format("Invalid HTTP Version &#x27;1.2.3.4 1.2.3.5 80 80&#x27;"))),
    ("http-2-only", text(400, GUNICORN.format("Expected HTTP/2 connection preface, got b&#x27;GET /"))),
    ("bad-request", text(400, GUNICORN.format("Invalid header"))),
    ("redirect-to-https", text(308, Location="https://a/ws?x=1")),
    ("redirect-slash", text(308, Location="/ws/?x=1")), ("redirect-slash", text(308, Location="http://a/ws/")),
    ("redirect", text(302, Location="/login")),
]


@pytest.mark.parametrize(("name", "answer"), OTHERS)
def test_others(name: str, answer: Answer) -> None:
    assert not is_ours(answer)
    assert judge_answer(answer).name == name


@pytest.mark.parametrize(("name", "answer"), [
    ("nginx", text(502, NGINX)), ("HAProxy", text(503, HAPROXY)), ("gunicorn", text(400, GUNICORN)),
    ("Apache", text(502, "<address>Apache/2.4</address>")), ("", text(404, "gone", Server="nginx")),
    ("", text(404, "", Server="nginx")), ("Caddy", text(502, "", Server="Caddy/2")),
    ("", text(404, "x", Server="Caddy")),
])
def test_author(name: str, answer: Answer) -> None:
    """nginx signs what it passes on too, so its header alone tells nothing."""
    assert author(answer) == name


def test_redirect_to_https_tells_the_url() -> None:
    assert "wss://a/ws" in judge_answer(text(301, Location="https://a/ws?x=1")).remedy
