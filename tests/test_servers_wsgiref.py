"""The room of wsgiref with the files and streams that it reads from, and what is built on it, for real."""

from __future__ import annotations

import io
import math
import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from battery import check, check_many, check_stop
from django.core.handlers.wsgi import LimitedStream
from peer import TIMEOUT
from servers import touch, wait_until
from test_deploy import CLIENTS, assert_successor_serves, crowded, left_by_itself, stats, stop

from wsthread import servers
from wsthread.detach import Detached
from wsthread.exceptions import DetachError
from wsthread.servers.wsgiref import Wsgiref

KINDS = ["wsgiref", "wsgiref-threads", "bottle", "runserver", "runserver-single", "runserver-reload"]


@pytest.mark.parametrize("wrap", [lambda file: file, lambda file: LimitedStream(file, 0)], ids=["plain", "Django's"])
def test_find(wrap: object) -> None:
    """And what the file has read behind the request is taken out of it."""
    assert callable(wrap)
    ours, client = socket.socketpair()
    ours.settimeout(TIMEOUT)
    with ours, client, ours.makefile("rb") as file:
        environ = {"wsgi.input": wrap(file)}
        server, found = servers.find(environ)
        assert isinstance(server, Wsgiref)
        assert found.fileno() == ours.fileno()
        client.sendall(b"GET / HTTP/1.1\r\n\r\na frame")
        assert [file.readline(), file.readline()] == [b"GET / HTTP/1.1\r\n", b"\r\n"]
        client.sendall(b"another, not read yet")
        detached = Detached(environ)
        with detached.socket:
            assert detached.unread == b"a frame"
            assert detached.socket.recv(99) == b"another, not read yet"
            detached.release()


@pytest.mark.parametrize("body", [
    None,
    io.BytesIO(b"a body"),
    io.BufferedReader(io.BytesIO(b"of no socket")),
    SimpleNamespace(raw=SimpleNamespace(_sock=socket.socket)),
    SimpleNamespace(_read=len),
    SimpleNamespace(_read=io.BytesIO().read),
], ids=["none", "replaced by middleware", "no socket", "another file", "a function", "a method of another file"])
def test_no_socket(body: object) -> None:
    """Attributes that another version may have in their place do no harm."""
    assert Wsgiref().find_socket({"wsgi.input": body}) is None
    with pytest.raises(DetachError, match="shows no socket"):
        servers.find({"SERVER_SOFTWARE": "WSGIServer/0.2 CPython/3.11.7", "wsgi.input": body})


def test_the_header_upgrade() -> None:
    """It answers with a 500 when an application sends one."""
    assert not Wsgiref().takes_upgrade


def test_end() -> None:
    """It does not tell, and does not kill."""
    assert not Wsgiref().is_stopping()
    assert Wsgiref().time_to_stop() == math.inf


@pytest.mark.parametrize("kind", ["runserver", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS)])
def test_served(kind: str) -> None:
    check(kind, has_access_log=kind != "bottle")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wsgiref-threads", "runserver", "runserver-single"])
def test_many_upgrades(kind: str) -> None:
    check_many(kind)


@pytest.mark.parametrize("kind", ["runserver", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS)])
def test_ctrl_c(kind: str) -> None:
    check_stop(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["runserver", "runserver-reload"])
def test_runserver_terminated(kind: str) -> None:
    """It leaves SIGTERM to the kernel; the process that reloads kills the one that serves."""
    with crowded(kind) as (server, herd):
        assert stop(server, herd, lambda: server.signal(signal.SIGTERM)).codes == {1006: CLIENTS}


@pytest.mark.slow
def test_runserver_reloads_a_touched_file(tmp_path: Path) -> None:
    (tmp_path / "watched_module.py").touch()
    path = os.pathsep.join([str(Path(__file__).parent), str(tmp_path)])
    with crowded("runserver-reload", env={"PYTHONPATH": path, "WATCHED": "watched_module"}) as (server, herd):
        process = stats(server)["pid"]
        assert process != server.process.pid
        stopped = stop(
            server, herd, lambda: touch(tmp_path / "watched_module.py", server, "changed, reloading"), process)
        assert stopped.codes == {1001: CLIENTS}
        assert left_by_itself(server, process)
        wait_until(lambda: server.log().count("Starting development server") == 2)
        wait_until(lambda: _serves(server.port))
        assert_successor_serves(server, process)
        assert server.errors() == []


def _serves(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
