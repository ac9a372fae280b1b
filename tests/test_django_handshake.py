"""The handshake as a response of Django: middleware, refusals, redirects."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished
from django.db import connection as database
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.test import Client, override_settings
from django.urls import path
from django_site import MIDDLEWARE, client, site, tables

from wsthread import Connection, ListenableManager, testing
from wsthread.django import request_of, websocket
from wsthread.django_handshake import Handshake, wsgi_environ
from wsthread.django_testing import connect

__all__ = ["client", "site", "tables"]

pytestmark = pytest.mark.usefixtures("site")
Answer = Callable[[HttpRequest], HttpResponse]


@websocket
def echo(conn: Connection) -> None:
    for message in conn:
        conn.send(message)


def refusal(client: Client, path: str, **options: Any) -> Any:
    """Try to open a WebSocket, and return the response that refuses it."""
    with pytest.raises(testing.Refused) as caught:
        connect(client, path, **options)
    return caught.value.response


def test_what_middleware_adds_is_on_the_101(site: list[Any], client: Client) -> None:
    """Their headers, and the cookie of a session that the view has written to."""

    def view(request: HttpRequest) -> HttpResponse:
        request.session["visits"] = request.session.get("visits", 0) + 1
        response = echo(request)
        response["X-View"] = "1"
        response.set_cookie("plain", "value")
        return response

    site.append(path("ws", view))
    for visits in (1, 2):
        with connect(client, "/ws") as ws:
            assert ws.response.status_code == 101
            headers = ws.response.headers
            assert (headers["X-View"], headers["X-Content-Type-Options"]) == ("1", "nosniff")
            assert {"Content-Type", "Content-Length", "Transfer-Encoding", "ETag"}.isdisjoint(headers.keys())
            assert len(headers.getlist("Set-Cookie")) == 2
            ws.send("hi")
            assert ws.receive() == "hi"
        assert client.session["visits"] == visits


def test_a_view_may_answer_something_else(site: list[Any], client: Client) -> None:
    """And then nothing has happened to the socket."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("no", status=418) if isinstance(echo(request), Handshake) else HttpResponse()

    site.append(path("ws", view))
    assert (refusal(client, "/ws").status_code, refusal(client, "/ws").text) == (418, "no")


def test_middleware_may_answer_something_else(site: list[Any], client: Client) -> None:
    site.append(path("ws", echo))
    with override_settings(MIDDLEWARE=["test_django_handshake.teapot", *MIDDLEWARE]):
        assert refusal(client, "/ws").status_code == 418


def teapot(get_response: Answer) -> Answer:
    """Make a middleware that throws the answer away."""

    def answer(request: HttpRequest) -> HttpResponse:
        assert get_response(request).status_code == 101
        return HttpResponse("no", status=418)

    return answer


def test_the_test_client_of_django_takes_no_socket(site: list[Any], client: Client) -> None:
    """It has none, and can look at the answer."""
    site.append(path("ws", echo))
    response = client.get("/ws", headers={
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="})
    assert response.status_code == 501 and b"gunicorn" in response.content


def test_what_only_shows_when_the_socket_is_taken_is_an_ordinary_answer(site: list[Any], client: Client) -> None:
    site.append(path("ws", websocket(ListenableManager(max_connections=1))))
    with connect(client, "/ws"):
        refused = refusal(client, "/ws")
        assert (refused.status_code, refused.text) == (503, "No more connections: max_connections is 1.\n")
        assert (refused.headers["Retry-After"], refused.headers["Content-Type"]) == ("5", "text/plain; charset=utf-8")
        assert refused.headers["Wsthread-Refused"] == "limit"
        assert refused.headers["X-Content-Type-Options"] == "nosniff"
    connect(client, "/ws").close()


def test_the_request_is_over_before_the_first_callback(site: list[Any], client: Client) -> None:
    order: list[str] = []
    manager = ListenableManager(on_connect=lambda conn: order.append("on_connect"))
    site.append(path("ws", websocket(manager)))

    def finished(**rest: Any) -> None:
        order.append("finished")

    request_finished.connect(finished)
    try:
        connect(client, "/ws").close()
    finally:
        request_finished.disconnect(finished)
    assert order == ["finished", "on_connect"]


def test_atomic_requests(site: list[Any], client: Client) -> None:
    """The transaction of a view ends with the view."""
    site.append(path("ws", websocket(lambda conn: conn.send(str(database.in_atomic_block)))))
    database.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        with connect(client, "/ws") as ws:
            assert ws.receive() == "False"
    finally:
        database.settings_dict["ATOMIC_REQUESTS"] = False


# Redirects


@pytest.mark.parametrize(("answer", "changes", "status", "words"), [
    (HttpResponseRedirect("/login/"), {}, 401, "Log in first."),
    (HttpResponse(status=301, headers={"Location": "/else"}), {}, 400, "redirects to /else"),
    (HttpResponse(status=304), {}, 304, ""),
    (None, {"SECURE_SSL_REDIRECT": True}, 400, "redirects to https://testserver/ws"),
])
def test_redirects(
    site: list[Any], client: Client, answer: HttpResponse | None, changes: dict[str, Any], status: int, words: str,
) -> None:
    site.append(path("ws", echo if answer is None else lambda request: answer))
    with override_settings(**changes):
        refused = refusal(client, "/ws")
        assert (refused.status_code, "Location" in refused.headers) == (status, False)
        assert words in refused.text
        assert refused.text == "" or refused.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert ("Wsthread-Refused" in refused.headers) == (refused.text != "")


def test_redirect_for_a_slash(site: list[Any], client: Client, caplog: pytest.LogCaptureFixture) -> None:
    site.append(path("räume/ws/", echo))
    refused = refusal(client, "/räume/ws")
    assert refused.status_code == 400
    assert refused.text.endswith("/ws/, and clients of WebSockets follow no redirects. Connect to that.\n")
    assert "refused handshake: 'GET' '/räume/ws' from None: 400 Bad Request: This address" in caplog.text


def test_pages_are_redirected(site: list[Any], client: Client) -> None:
    site.append(path("page/", lambda request: HttpResponse("page")))
    assert client.get("/page").status_code == 301


# Servers


def test_asgi(site: list[Any]) -> None:
    """Such a server has no socket for us."""
    scope = {"type": "http", "method": "GET", "path": "/ws", "query_string": b""}
    headers = {
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Host": "testserver",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    scope["headers"] = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    response = echo(ASGIRequest(scope, io.BytesIO()))
    assert response.status_code == 501
    assert response.content == (
        b"This ASGI server shows no socket to its applications; serve with gunicorn --worker-class gthread, or with "
        b"another server that can: uWSGI, waitress, cheroot; while developing with flask run or manage.py runserver.\n")
    scope["headers"] = [(b"host", b"testserver")]
    assert echo(ASGIRequest(scope, io.BytesIO())).status_code == 426
    assert asyncio.iscoroutinefunction(echo) is False


@pytest.mark.parametrize("wsgi", ["/ws", "/r\xc3\xa4ume/\xe2\x82\xac", "/\xff"])
def test_environ(wsgi: str) -> None:
    """Paths are as the server has sent them; Django has decoded those in its own environ."""
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": wsgi, "SCRIPT_NAME": "/\xc3\xa4"}
    request = WSGIHandler.request_class({**environ, "wsgi.input": io.BytesIO()})
    found = wsgi_environ(request)
    if wsgi != "/\xff":  # Which Django replaces.
        assert found["PATH_INFO"] == wsgi
    assert found["SCRIPT_NAME"] == "/\xc3\xa4"
    assert wsgi_environ(HttpRequest())["PATH_INFO"] == ""


def test_mounted(site: list[Any], client: Client) -> None:
    site.append(path("ws", websocket(lambda conn: conn.send(f"{conn} {request_of(conn).get_full_path()}"))))
    with connect(client, "/ws?a", environ_overrides={"SCRIPT_NAME": "/app"}) as ws:
        assert ws.receive() == "WebSocket local '/app/ws' /app/ws?a"
