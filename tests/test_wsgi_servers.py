"""wsthread under the servers other than gunicorn and Werkzeug: the same promises, for each of them.

The access logs are told apart: waitress and cheroot write none.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from clients import BINARY, CLOSE, TEXT, RawClient, frame, handshake
from servers import Server, free_port, serve, touch, wait_until

APP = "apps.echo:app"
LOGS_ACCESS = ("wsgiref", "bottle", "runserver", "runserver-single", "uwsgi", "uwsgi-router", "nginx")


class Kind(NamedTuple):
    """A server.

    Attributes:
        name: of :data:`servers.SERVERS`, or ``nginx-proxy`` or ``nginx-uwsgi`` for uWSGI behind nginx.
        needs: the module that has to be installed.
        threads: from how many threads upgrades come at a time.
    """

    name: str
    needs: str
    threads: int = 12


KINDS = [
    Kind("runserver", "django"), Kind("uwsgi", "pyuwsgi"), Kind("waitress", "waitress"), Kind("cheroot", "cheroot"),
    Kind("wsgiref", "wsgiref"), Kind("bottle", "bottle", 1), Kind("runserver-single", "django", 1),
    Kind("uwsgi-router", "pyuwsgi"), Kind("nginx-proxy", "pyuwsgi"), Kind("nginx-uwsgi", "pyuwsgi"),
]
by_name = {kind.name: kind for kind in KINDS}


def need(kind: Kind) -> None:
    """Skip the test when a server is not installed; where CI says so, it must not be missing."""
    missing = importlib.util.find_spec(kind.needs) is None
    if missing and not (kind.needs == "pyuwsgi" and Path(sys.executable).with_name("uwsgi").exists()):
        assert not os.environ.get("CI"), f"{kind.needs} is not installed"
        pytest.skip(f"{kind.needs} is not installed")
    if kind.name.startswith("nginx") and shutil.which("nginx", path=PATH) is None:
        assert not os.environ.get("CI"), "nginx is not installed"
        pytest.skip("nginx is not installed")


PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
NGINX = """
daemon off; pid {directory}/pid; error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off; client_body_temp_path {directory}/a; proxy_temp_path {directory}/b; uwsgi_temp_path {directory}/c;
    fastcgi_temp_path {directory}/d; scgi_temp_path {directory}/e;
    server {{ listen 127.0.0.1:{port}; client_max_body_size 0; location / {{ {location} }} }}
}}
"""
PROXY = (
    "proxy_pass http://127.0.0.1:{port}; proxy_http_version 1.1; proxy_set_header Host $http_host; "
    'proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";')
UWSGI_PASS = "uwsgi_pass 127.0.0.1:{port}; include /etc/nginx/uwsgi_params;"


@contextmanager
def running(kind: Kind, app: str = APP, *options: str, directory: Path | None = None) -> Iterator[Server]:
    """Run a server, behind nginx where its name says so."""
    need(kind)
    if not kind.name.startswith("nginx"):
        with serve(kind.name, app, *options) as server:
            yield server
        return
    assert directory is not None
    inner, location = ("uwsgi", PROXY) if kind.name == "nginx-proxy" else ("uwsgi-socket", UWSGI_PASS)
    with serve(inner, app, *options) as server:
        port, behind = free_port(), server.port
        path = directory / "nginx.conf"
        path.write_text(NGINX.format(directory=directory, port=port, location=location.format(port=behind)))
        with subprocess.Popen([str(shutil.which("nginx", path=PATH)), "-c", path, "-p", directory]) as nginx:
            try:
                server.port = port
                wait_until(server.listens)
                yield server
            finally:
                server.port = behind
                nginx.terminate()


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(request.param, directory=tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    wait_until(lambda: is_idle(shared))
    yield shared
    assert shared.errors() == []


def is_idle(server: Server) -> bool:
    stats = server.stats()
    return not stats["open"] and stats["connected"] == len(stats["closed"])


on_all = pytest.mark.parametrize("shared", [
    pytest.param(kind, id=kind.name, marks=[pytest.mark.slow] if number > 4 else [])
    for number, kind in enumerate(KINDS)], indirect=True)


@on_all
def test_large_echo(server: Server) -> None:
    message = os.urandom(1 << 20) * 4
    with RawClient(server.port, timeout=30) as client:
        client.open().send(frame(BINARY, message))
        assert client.recv(10) == b"\x82\x7f" + len(message).to_bytes(8, "big")
        assert client.recv(len(message)) == message
        client.send(frame(CLOSE, b"\x03\xe8"))
        assert client.recv_rest() == b"\x88\x02\x03\xe8"


@on_all
def test_http_beside_open_sockets(server: Server) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.port)).open() for _ in range(8)]
        begun = time.monotonic()
        assert server.get() == "plain HTTP"
        assert time.monotonic() - begun < 5
        for number, client in enumerate(clients):
            client.send(frame(TEXT, str(number)))
            assert client.recv_frame() == (TEXT, str(number).encode())
            assert client.silent(0.01)  # One 101, and nothing of the server's.
            client.send(frame(CLOSE, b"\x03\xe8"))
            assert client.recv_rest() == b"\x88\x02\x03\xe8"


@on_all
def test_many_upgrades(server: Server, request: pytest.FixtureRequest) -> None:
    with RawClient(server.port) as first:
        first.open()
    for _ in range(3):
        server.get()
    wait_until(lambda: is_idle(server))
    lines = server.log().count('" 101 ') + server.log().count("(HTTP/1.1 101)")
    before, failed, threads = server.descriptors(), [], 1 if "single" in server.kind or server.kind == "bottle" else 12

    def work(thread: int) -> None:
        try:
            for number in range(600 // threads):
                with RawClient(server.port, timeout=30) as client:
                    client.open().send(frame(TEXT, f"{thread} {number}"))
                    assert client.recv_frame() == (TEXT, f"{thread} {number}".encode())
                    if number % 2:
                        client.send(frame(CLOSE, b"\x03\xe8"))
                        assert client.recv_rest() == b"\x88\x02\x03\xe8"
        except BaseException as error:
            failed.append(repr(error))

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(90)
    assert failed == []
    wait_until(lambda: is_idle(server))
    wait_until(lambda: server.descriptors() <= before + 2)  # Those of the requests of this test.
    if server.kind in LOGS_ACCESS:
        wait_until(
            lambda: server.log().count('" 101 ') + server.log().count("(HTTP/1.1 101)") == lines + 600, timeout=5)


@on_all
def test_refusals(server: Server) -> None:
    status, cause, body = refusal(server, "Origin: https://evil.example")
    assert (status, cause) == (403, "origin") and "evil.example" in body


def refusal(server: Server, *headers: str) -> tuple[int, str | None, str]:
    """Return the status, the cause and the body of a refused handshake."""
    with RawClient(server.port) as client:
        client.send(handshake("/echo", server.port, *headers))
        response = http.client.HTTPResponse(client.socket)
        response.begin()
        return response.status, response.headers["Wsthread-Refused"], response.read().decode()


EARLY = [kind for kind in KINDS if not kind.name.startswith(("uwsgi", "nginx"))]


@pytest.mark.parametrize("shared", [
    pytest.param(kind, id=kind.name, marks=[pytest.mark.slow] if kind in KINDS[5:] else []) for kind in EARLY],
    indirect=True)
def test_frames_behind_the_handshake(server: Server) -> None:
    """uWSGI keeps them for itself."""
    with RawClient(server.port) as client:
        client.send(handshake("/echo", server.port) + frame(TEXT, "behind") + frame(BINARY, bytes(300)))
        assert client.recv_head().startswith(b"HTTP/1.1 101 ")
        assert client.recv_frame() == (TEXT, b"behind")
        assert client.recv_frame() == (BINARY, bytes(300))
        client.send(frame(TEXT, "later"))
        assert client.recv_frame() == (TEXT, b"later")


# The end


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "number"), [
    ("runserver", signal.SIGINT), ("waitress", signal.SIGINT), slow("cheroot", signal.SIGINT),
    slow("wsgiref", signal.SIGINT), slow("bottle", signal.SIGINT), slow("runserver-single", signal.SIGINT),
    ("uwsgi", signal.SIGTERM), slow("uwsgi", signal.SIGINT), slow("uwsgi", signal.SIGHUP),
    slow("nginx-uwsgi", signal.SIGTERM),
])
def test_stop(name: str, number: int, tmp_path: Path) -> None:
    """uWSGI's own HTTP router is gone before its workers are, so clients behind it see no Close."""
    if "uwsgi" in name and number != signal.SIGHUP and sys.version_info >= (3, 13):
        pytest.skip("one time in four its worker ends without the interpreter's atexit, so that clients see no Close")
    with running(by_name[name], directory=tmp_path) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.port)).open() for _ in range(10)]
        # A server without threads may be at the end of the last request yet, and take KeyboardInterrupt for its error.
        time.sleep(0.1)
        begun = time.monotonic()
        server.signal(number)
        for client in clients:
            assert client.recv_frame() == (CLOSE, b"\x03\xe9")
            client.send(frame(CLOSE, b"\x03\xe9"))
            assert client.recv_rest() == b""
        assert time.monotonic() - begun < 3
        if number != signal.SIGHUP:
            server.process.wait(10)
        if name != "cheroot":  # It prints the traceback of its own KeyboardInterrupt.
            assert server.errors() == []


@pytest.mark.slow
def test_autoreload(tmp_path: Path) -> None:
    """Whoever saves a file gets a Close, and then the new server."""
    (tmp_path / "autoreloaded.py").write_text("from apps.echo import app\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parent}"}
    with serve("runserver-reload", "autoreloaded:app", env=environment) as server:
        wait_until(lambda: "Watching for file changes" in server.log())
        with RawClient(server.port) as client:
            client.open()
            touch(tmp_path / "autoreloaded.py", server, "changed, reloading")
            assert client.recv_frame() == (CLOSE, b"\x03\xe9")
        wait_until(lambda: len(re.findall("Starting .*development server", server.log())) == 2)
        wait_until(server.listens)
        with RawClient(server.port) as client:
            client.open().send(frame(TEXT, "again"))
            assert client.recv_frame() == (TEXT, b"again")


# What is refused


@pytest.mark.slow
def test_uwsgi_with_gevent() -> None:
    kind = by_name["uwsgi"]
    need(kind)
    pytest.importorskip("gevent")
    with serve("uwsgi", APP, "--gevent", "10", "--set", "threads=1") as server:
        status, cause, body = refusal(server)
        assert (status, cause) == (501, "server")
        assert "uWSGI runs with --gevent" in body


def test_plain_requests_go_on(tmp_path: Path) -> None:
    with running(by_name["waitress"], directory=tmp_path) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        for _ in range(3):
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"plain HTTP"
        connection.close()
        assert re.search("Traceback", server.log()) is None
