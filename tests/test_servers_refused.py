"""What no socket can be had of: each answer says what to do."""

from __future__ import annotations

import socket
import ssl
import sys
from types import ModuleType
from typing import Any

import pytest

from wsthread import servers
from wsthread.exceptions import DetachError
from wsthread.servers.refused import ASGI


def named(module: str, base: type = object) -> object:
    """Return an object of a class of that module, as far as one can tell."""
    return type("socket", (base,), {"__module__": module})()


GTHREAD = "--worker-class gthread"


@pytest.mark.parametrize(("environ", "told"), [
    ({}, f"This WSGI server shows no socket to its applications; "
     f"serve with gunicorn {GTHREAD}, or .* uWSGI, .* flask run"),
    ({"SERVER_SOFTWARE": ""}, "This WSGI server shows no socket"),
    ({"SERVER_SOFTWARE": "waitress", "gunicorn.socket": None}, f"waitress shows no socket .* gunicorn {GTHREAD}"),
    ({"SERVER_SOFTWARE": "WSGIServer/0.2 CPython/3.11.7"},
     f"WSGIServer/0.2 CPython/3.11.7 .* gunicorn {GTHREAD}, .* runserver$"),
    ({"SERVER_SOFTWARE": ASGI}, f"This ASGI server shows no socket .* gunicorn {GTHREAD}, "),
    ({"gunicorn.socket": named("gevent._socket3")}, f"gevent and eventlet .* threads cannot serve; use .* {GTHREAD}"),
    ({"werkzeug.socket": named("eventlet.greenio.base")}, "gevent and eventlet workers"),
    ({"SERVER_SOFTWARE": "gevent/20.0 Python/3.11"}, "gevent and eventlet workers"),
    ({"wsgi.input": named("eventlet.wsgi")}, "gevent and eventlet workers"),
    ({"gunicorn.socket": named("gevented")}, "the server shows a socket instead of a socket"),
    ({"gunicorn.socket": "7"}, "the server shows a str instead of a socket"),
])
def test_no_socket(environ: dict[str, Any], told: str) -> None:
    with pytest.raises(DetachError, match=told):
        servers.find(environ)


@pytest.mark.parametrize(("module", "name"), [("bjoern", "bjoern"), ("granian", "Granian"), ("uvicorn", "uvicorn")])
def test_servers_without_a_name(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    """They do not tell who they are, but the process knows."""
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    with pytest.raises(DetachError, match=f"^{name} shows no socket"):
        servers.find({})


def test_green_socket_that_is_a_socket() -> None:
    """Its class may be derived from the real one."""
    green = named("gevent._socket3", socket.socket)
    assert isinstance(green, socket.socket)
    with green, pytest.raises(DetachError, match="gevent"):
        servers.find({"gunicorn.socket": green})


class OtherSocket(ssl.SSLSocket):
    """A class that somebody has derived, for whatever reason."""


@pytest.mark.parametrize(("sslsocket_class", "is_taken"), [(ssl.SSLSocket, True), (OtherSocket, False)])
def test_tls(sslsocket_class: type[ssl.SSLSocket], is_taken: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = sslsocket_class
    with context.wrap_socket(socket.socket(), server_hostname="a") as secure:
        if is_taken:
            assert servers.find({"gunicorn.socket": secure})[1] is secure
        else:
            with pytest.raises(DetachError, match="TLS socket is a test_servers_refused.OtherSocket.* let a proxy"):
                servers.find({"gunicorn.socket": secure})
