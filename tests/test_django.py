"""WebSockets in Django's URLconf: views, options, who may connect, settings."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.decorators import login_required, permission_required
from django.core.exceptions import ImproperlyConfigured
from django.test import Client, override_settings
from django.urls import include, path, re_path
from django.utils.functional import SimpleLazyObject
from django_site import client, site, tables

import wsthread
from wsthread import Connection, ListenableManager, Opcode, SimpleManager, testing
from wsthread.django import get_manager, messages, request_of, websocket
from wsthread.django_testing import connect

__all__ = ["client", "site", "tables"]

pytestmark = pytest.mark.usefixtures("site")


@websocket
def echo(conn: Connection, name: str = "echo") -> None:
    for message in conn:
        conn.send(f"{name}: {message!r}")


def room_manager(**options: Any) -> ListenableManager:
    """Return a manager that says in which room somebody is."""
    manager = ListenableManager(**options)

    @manager.on_message
    def message(conn: Connection, opcode: Opcode, payload: str) -> None:
        match = request_of(conn).resolver_match
        assert match is not None
        conn.send(f"{match.kwargs['room']}: {payload}")

    return manager


def refusal(client: Client, path: str, **options: Any) -> Any:
    """Try to open a WebSocket, and return the response that refuses it."""
    with pytest.raises(testing.Refused) as caught:
        connect(client, path, **options)
    return caught.value.response


# Views


def test_manager(site: list[Any], client: Client) -> None:
    manager = room_manager()
    site.append(path("ws/<room>", websocket(manager)))
    with connect(client, "/ws/raum ä€") as ws:
        ws.send("hi")
        assert ws.receive() == "raum ä€: hi"
        assert [str(conn) for conn in manager.connections] == ["WebSocket local '/ws/raum ä€'"]
        assert manager.broadcast("all")
        assert ws.receive() == "all"


def test_simple_manager(site: list[Any], client: Client) -> None:
    site.append(path("ws", websocket(SimpleManager(lambda conn: conn.send("done")))))
    with connect(client, "/ws") as ws:
        assert list(ws) == ["done"]


@pytest.mark.parametrize(("route", "url", "answer"), [
    (path("ws/<name>", echo), "/ws/ada", "ada: 'hi'"),
    (path("ws", echo), "/ws", "echo: 'hi'"),
    (path("ws", echo, {"name": "fixed"}), "/ws", "fixed: 'hi'"),
    (re_path(r"^ws/(\w+)$", echo), "/ws/positional", "positional: 'hi'"),
    (path("chat/", include([path("<name>/ws/", echo)])), "/chat/ada/ws/", "ada: 'hi'"),
], ids=repr)
def test_function(site: list[Any], client: Client, route: Any, url: str, answer: str) -> None:
    site.append(route)
    with connect(client, url) as ws:
        ws.send("hi")
        assert ws.receive() == answer
        assert len(get_manager().connections) == 1
    assert ws.close_code == 1000


def test_the_view_is_named_after_its_function() -> None:
    assert (echo.__name__, echo.__module__) == ("echo", __name__)


def test_plain_request(site: list[Any], client: Client) -> None:
    site.append(path("ws", echo))
    response = client.get("/ws")
    assert (response.status_code, response["Upgrade"]) == (426, "websocket")
    assert b"This address speaks WebSocket" in response.content


async def asynchronous(conn: Connection) -> None:
    """It could never work."""


@pytest.mark.parametrize("target", [asynchronous, lambda: None, 7, "echo"], ids=repr)
def test_what_could_never_work_is_refused(target: Any) -> None:
    with pytest.raises(TypeError):
        websocket(target)


@pytest.mark.parametrize(("options", "error"), [
    ({"max_message_size": -1}, ValueError),
    ({"subprotocols": "chat"}, TypeError),
    ({"compression": True}, TypeError),
    ({"ping_interval": 3}, TypeError),
])
def test_wrong_options_are_refused(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        websocket(ListenableManager(), **options)
    with pytest.raises(error):
        websocket(**options)


def test_options_of_a_view(site: list[Any], client: Client) -> None:
    limited = websocket(max_message_size=3, subprotocols=["chat"])
    site += [path("function", limited(lambda conn: list(conn))), path("manager/<room>", limited(room_manager()))]
    for url in ("/function", "/manager/7"):
        with connect(client, url, subprotocols=["chat"]) as ws:
            assert ws.subprotocol == "chat"
            ws.send("four")
            assert list(ws) == []
            assert ws.close_code == 1009


def test_request_of_others() -> None:
    with testing.connect(wsthread.Upgrader(wsthread.SimpleManager(list))) as ws:
        assert ws.connection is not None
        with pytest.raises(TypeError, match="none of Django's"):
            request_of(ws.connection)
        with pytest.raises(RuntimeError, match="none of a view"):
            messages(ws.connection)


# Decorators


@pytest.fixture
def ada() -> Any:
    user, _ = get_user_model().objects.get_or_create(username="ada")
    return user


@pytest.mark.parametrize(("decorate", "status", "reason"), [
    (login_required, None, ""),
    (permission_required("auth.add_user"), 403, "The one who is logged in may not connect"),
    (permission_required("auth.add_user", raise_exception=True), 403, "403 Forbidden"),
])
@pytest.mark.parametrize("target", [echo, websocket(room_manager())], ids=["function", "manager"])
def test_decorators(
    site: list[Any], client: Client, ada: Any, decorate: Any, status: int | None, reason: str, target: Any,
) -> None:
    site.append(path("ws", decorate(target)))
    refused = refusal(client, "/ws")
    assert (refused.status_code, "Location" in refused.headers) == (403 if "403" in reason else 401, False)
    client.force_login(ada)
    if status is None:
        with connect(client, "/ws") as ws:
            ws.ping()
    else:
        refused = refusal(client, "/ws")
        assert refused.status_code == status and reason in refused.text


def test_a_user_that_nobody_asked_for_is_loaded_in_the_callback(site: list[Any], client: Client, ada: Any) -> None:
    manager = ListenableManager()
    site.append(path("ws", websocket(manager)))

    @manager.on_connect
    def connected(conn: Connection) -> None:
        user = request_of(conn).user
        assert isinstance(user, SimpleLazyObject)
        conn.send(user.get_username())

    client.force_login(ada)
    with connect(client, "/ws") as ws:
        assert ws.receive() == "ada"


# Who may connect


@pytest.mark.parametrize(("origin", "trusted", "status"), [
    (None, [], 101),
    ("http://testserver", [], 101),
    ("https://testserver", [], 101),
    ("http://testserver:8000", [], 403),
    ("http://example.com", [], 403),
    ("http://example.com", ["http://example.com"], 101),
    ("https://example.com", ["http://example.com"], 403),
    ("https://a.example.com", ["https://*.example.com"], 101),
    ("https://a.b.example.com", ["https://*.example.com"], 101),
    ("https://example.com", ["https://*.example.com"], 101),  # As Django's check of CSRF has it.
    ("http://a.example.com", ["https://*.example.com"], 403),
    ("https://badexample.com", ["https://*.example.com"], 403),
    ("https://a.example.com:8443", ["https://*.example.com:8443"], 101),
    ("https://a.example.com:8443", ["https://*.example.com"], 403),
    ("https://[", ["https://*.example.com"], 403),
    ("null", ["https://*.example.com"], 403),
])
def test_origins(site: list[Any], client: Client, origin: str | None, trusted: list[str], status: int) -> None:
    site.append(path("ws", echo))
    headers = {} if origin is None else {"Origin": origin}
    with override_settings(CSRF_TRUSTED_ORIGINS=trusted):
        if status == 101:
            connect(client, "/ws", headers=headers).close()
        else:
            refused = refusal(client, "/ws", headers=headers)
            assert refused.status_code == status
            assert "CSRF_TRUSTED_ORIGINS" in refused.text and "USE_X_FORWARDED_HOST" in refused.text


def test_origins_behind_a_proxy(site: list[Any], client: Client) -> None:
    site.append(path("ws", echo))
    headers = {"Origin": "https://example.com", "X-Forwarded-Host": "example.com"}
    assert refusal(client, "/ws", headers=headers).status_code == 403
    with override_settings(USE_X_FORWARDED_HOST=True, ALLOWED_HOSTS=["example.com"]):
        connect(client, "/ws", headers=headers).close()


def test_origins_of_the_settings_and_of_a_view(site: list[Any], client: Client) -> None:
    site += [path("ws", echo), path("own", websocket(lambda conn: None, origins=["https://own.example"]))]

    def statuses(url: str) -> list[int]:
        found = []
        for origin in ("http://testserver", "https://set.example", "https://own.example"):
            try:
                connect(client, url, headers={"Origin": origin}).close()
                found.append(101)
            except testing.Refused as error:
                found.append(error.status)
        return found

    assert (statuses("/ws"), statuses("/own")) == ([101, 403, 403], [403, 403, 101])
    with override_settings(WSTHREAD_ORIGINS=["https://set.example"]):
        assert (statuses("/ws"), statuses("/own")) == ([403, 101, 403], [403, 403, 101])
    with override_settings(WSTHREAD_ORIGINS=None):
        assert statuses("/ws") == [101, 403, 403]


def test_hosts(site: list[Any], client: Client) -> None:
    site.append(path("ws", echo))
    assert refusal(client, "/ws", base_url="http://example.com").status_code == 400
    with override_settings(ALLOWED_HOSTS=[".example.com"], MIDDLEWARE=[]):
        assert refusal(client, "/ws").status_code == 400
        connect(client, "ws://a.example.com/ws").close()


# Settings


@pytest.mark.parametrize(("setting", "value"), [
    ("WSTHREAD_PINGINTERVAL", 3), ("WSTHREAD_PING_INTERVAL", -3), ("WSTHREAD_SUBPROTOCOLS", "chat"),
])
def test_wrong_settings(site: list[Any], client: Client, setting: str, value: Any) -> None:
    site.append(path("ws", echo))
    with override_settings(**{setting: value}):
        with pytest.raises(ImproperlyConfigured, match=re.escape(setting) + "|" + setting[9:].lower()):
            get_manager()
        with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True), pytest.raises(ImproperlyConfigured):
            connect(client, "/ws")
        assert refusal(client, "/ws").status_code == 500
    connect(client, "/ws").close()


def test_settings(site: list[Any], client: Client) -> None:
    site.append(path("ws", echo))
    before = get_manager()
    with override_settings(WSTHREAD_MAX_MESSAGE_SIZE=3, WSTHREAD_SUBPROTOCOLS=["chat"]):
        assert get_manager().options.max_message_size == 3
        assert get_manager() is get_manager() is not before
        with connect(client, "/ws", subprotocols=["chat"]) as ws:
            assert ws.subprotocol == "chat"
            ws.send("four")
            assert (list(ws), ws.close_code) == ([], 1009)
