"""WebSockets with Django's test client."""

from __future__ import annotations

from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django_site import client, site, tables

from wsthread import Connection, testing
from wsthread.django import request_of, websocket
from wsthread.django_testing import connect

__all__ = ["client", "site", "tables"]

pytestmark = pytest.mark.usefixtures("site")


@websocket
def tell(conn: Connection) -> None:
    request = request_of(conn)
    conn.send(f"{request.get_host()} {request.scheme} {sorted(request.COOKIES.items())} {request.GET.dict()}")


@pytest.mark.parametrize(("url", "options", "answer"), [
    ("/ws?a=1", {}, "testserver http [] {'a': '1'}"),
    ("wss://testserver/ws", {}, "testserver https [] {}"),
    ("/ws", {"base_url": "https://testserver:8000"}, "testserver:8000 https [] {}"),
    ("/ws", {"headers": {"Cookie": "a=b"}}, "testserver http [('a', 'b')] {}"),
])
def test_requests(site: list[Any], client: Client, url: str, options: Any, answer: str) -> None:
    site.append(path("ws", tell))
    with connect(client, url, **options) as ws:
        assert ws.receive() == answer


def test_cookies(site: list[Any], client: Client) -> None:
    """Those of the client are sent, those of the 101 are the client's."""

    def view(request: HttpRequest) -> HttpResponse:
        response = tell(request)
        response.set_cookie("new", 'with "quotes"; and ä', max_age=60, httponly=True)
        response.set_cookie("other", "2")
        return response

    site.append(path("ws", view))
    client.cookies["old"] = "a b"
    with connect(client, "/ws") as ws:
        assert ws.receive() == "testserver http [('old', 'a b')] {}"
    assert client.cookies["new"]["max-age"] == "60"
    with connect(client, "/ws") as ws:
        assert ws.receive() == (
            """testserver http [('new', 'with "quotes"; and ä'), ('old', 'a b'), ('other', '2')] {}""")


def test_refused(site: list[Any], client: Client) -> None:
    with pytest.raises(testing.Refused) as caught:
        connect(client, "/nothing")
    assert caught.value.response.status_code == 404
