"""The room of uWSGI, with what it would put into the environ and into the process."""

from __future__ import annotations

import contextlib
import math
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from peer import TIMEOUT

from wsthread import servers
from wsthread.detach import Detached
from wsthread.exceptions import DetachError
from wsthread.servers.uwsgi import Uwsgi

ENVIRON = {"uwsgi.version": b"2.0.31", "wsgi.url_scheme": "https"}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The module that exists only within uWSGI; its descriptor is that of nothing."""
    uwsgi = SimpleNamespace(opt={b"http-socket": b":8000"}, connection_fd=lambda: 7)
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    return uwsgi


def test_find(module: SimpleNamespace) -> None:
    server, found = servers.find(ENVIRON)
    assert isinstance(server, Uwsgi) and found == 7


def test_not_its_request(module: SimpleNamespace) -> None:
    assert Uwsgi().find_socket({"wsgi.input": 1}) is None


def test_no_module() -> None:
    """An environ may be a copy that another server got."""
    assert Uwsgi().find_socket(ENVIRON) is None


def test_no_descriptor(module: SimpleNamespace) -> None:
    module.connection_fd = lambda: -1
    with pytest.raises(DetachError, match="shows a int instead of a socket"):
        servers.find(ENVIRON)


def test_exchange(module: SimpleNamespace) -> None:
    ours, client = socket.socketpair()
    client.settimeout(TIMEOUT)
    with ours, client:
        module.connection_fd = ours.fileno
        detached = Detached(dict(ENVIRON))
        with contextlib.closing(detached.transport):
            ours.sendall(b"uWSGI's 101")
            detached.transport.send(b"ours")
            assert client.recv(99) == b"ours"
            detached.release()
        assert detached.unread == b""


@pytest.mark.parametrize(("options", "told"), [
    ({b"gevent": b"100"}, "--gevent, .* processes and threads"),
    ({"asyncio": "10"}, "--asyncio"),
    ({b"https-socket": b":8443,a,b"}, "https-socket .* nginx"),
])
def test_refused(module: SimpleNamespace, options: dict[Any, Any], told: str) -> None:
    module.opt.update(options)
    with pytest.raises(DetachError, match=told):
        servers.find(ENVIRON)


@pytest.mark.parametrize(("version", "options", "is_served"), [
    ((2, 0, 23, 0, b""), {}, False),
    ((2, 0, 23, 0, b""), {b"enable-threads": True}, True),
    ((2, 0, 26, 0, b""), {b"threads": b"4"}, True),
    ((2, 0, 27, 0, b"a1"), {}, False),
    ((2, 0, 30, 0, b""), {}, True),
])
def test_threads(module: SimpleNamespace, version: tuple[Any, ...], options: dict[Any, Any], is_served: bool) -> None:
    module.version_info = version
    module.opt.update(options)
    if is_served:
        assert servers.find(ENVIRON)[1] == 7
    else:
        with pytest.raises(DetachError, match="add --enable-threads"):
            servers.find(ENVIRON)


def test_plain_request_beside_tls(module: SimpleNamespace) -> None:
    module.opt[b"https-socket"] = b":8443,a,b"
    assert servers.find({**ENVIRON, "wsgi.url_scheme": "http"})[1] == 7


def test_environ_of_its_own() -> None:
    assert all(key.startswith(servers.OWN_KEYS) for key in ("uwsgi.core", "x-wsgiorg.fdevent.readable"))


@pytest.mark.parametrize(("options", "allowed"), [
    ({}, 58), ({b"reload-mercy": b"10"}, 8), ({b"worker-reload-mercy": b"2", b"reload-mercy": b"10"}, 0.5),
    ({"reload-mercy": True}, 0.25), ({b"reload-mercy": [b"10", b"20"]}, 58), ({b"reload-mercy": b"soon"}, 58),
])
def test_time_to_stop(module: SimpleNamespace, options: dict[Any, Any], allowed: float) -> None:
    module.opt.update(options)
    assert Uwsgi().time_to_stop() == allowed


def test_another_server_runs() -> None:
    assert Uwsgi().time_to_stop() == math.inf
    assert not Uwsgi().is_stopping()


def test_options_of_another_kind(module: SimpleNamespace) -> None:
    module.opt = None
    assert servers.find(ENVIRON)[1] == 7


@pytest.mark.parametrize(("told", "count"), [(4, 4), (1, 1), (None, 1), ("4", 1)])
def test_processes(module: SimpleNamespace, told: Any, count: int) -> None:
    module.numproc = told
    assert servers.processes() == count
