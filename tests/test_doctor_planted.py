"""What doctor says of faults that are planted in real servers and proxies, and of good deployments."""

from __future__ import annotations

import json
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import gunicorn.config
import gunicorn.workers
import pytest
from proxies import (
    NeedProgram, free_port, is_open, make_certificate, nginx_site, nginx_tls_site, recipe, run_haproxy, run_nginx,
)
from servers import TESTS, Server, serve, wait_until
from test_proxies import haproxy_config, opens

from wsthread.client import connect
from wsthread.commands import main
from wsthread.exceptions import HandshakeRefused

pytestmark = pytest.mark.slow
APP = "apps.deployed:app"


class Diagnosis(NamedTuple):
    """What doctor said.

    Attributes:
        status: its exit status.
        names: of its findings, notes left out, with their hops.
        text: all of it.
    """

    status: int
    names: list[tuple[str, str]]
    text: str


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that calls doctor with arguments and returns what it says."""

    def call(*arguments: str) -> Diagnosis:
        status = main(["doctor", "--json", *arguments])
        text = capsys.readouterr().out
        found = json.loads(text)
        assert found["well"] is (status == 0)
        names = [(one["name"], one["hop"]) for one in found["findings"] if one["severity"] != "note"]
        return Diagnosis(status, names, text)

    return call


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("gthread", APP, "--threads", "16", env={"MANAGER": '{"ping_interval": 0.5}'}) as found:
        yield found


@pytest.fixture(scope="module")
def certificate(need_program: NeedProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(need_program("openssl"), tmp_path_factory.mktemp("tls"))


# Good deployments


@pytest.mark.parametrize("kind", [
    "gthread", "sync", "werkzeug", "run_simple", "runserver", "uwsgi", "uwsgi-router", "waitress", "cheroot"])
def test_good_server(doctor: Any, kind: str, need_program: NeedProgram, tmp_path: Path) -> None:
    """Alone, and behind nginx."""
    port = free_port()
    with serve(kind, APP) as server:
        assert doctor(server.url("/ws", "ws"), "--idle", "0.3")[:2] == (0, [])
        with run_nginx(need_program("nginx"), tmp_path, nginx_site(server.port, port), [port]):
            assert doctor(f"ws://127.0.0.1:{port}/ws", "--idle", "0.3")[:2] == (0, [])


def test_good_uwsgi_pass(doctor: Any, need_program: NeedProgram, tmp_path: Path) -> None:
    """nginx and uWSGI in uWSGI's own protocol."""
    port = free_port()
    with serve("uwsgi-socket", APP) as server:
        lines = "include /etc/nginx/uwsgi_params; uwsgi_param HTTP_HOST $host:$server_port; uwsgi_pass chat;"
        site = nginx_site(server.port, port, {"proxy_pass http://chat;": lines})
        with run_nginx(need_program("nginx"), tmp_path, site, [port]):
            assert doctor(f"ws://127.0.0.1:{port}/ws", "--idle", "0.3")[:2] == (0, [])


@pytest.mark.parametrize("listens", ["port", "unix"])
def test_good_behind_nginx(
    doctor: Any, listens: str, certificate: Path, need_program: NeedProgram, tmp_path: Path,
) -> None:
    """With the recipe as it is, TLS included."""
    plain, secure, path = free_port(), free_port(), tmp_path / "app.sock"
    bind = f"unix:{path}" if listens == "unix" else f"127.0.0.1:{free_port()}"
    site = nginx_tls_site(bind, plain, secure, certificate)
    with serve("gthread", APP, "--threads", "16", bind=bind):
        with run_nginx(need_program("nginx"), tmp_path, site, [plain, secure]) as proxy:
            found = doctor(
                f"https://127.0.0.1:{secure}/ws", "--ca", str(certificate), "--idle", "1", "--proxy-config",
                str(tmp_path / "site.conf"), "--gunicorn", "--threads", "16", "--bind", bind, "app:app")
            assert found[:2] == (0, []), found.text
            assert doctor("--proxy-config", str(proxy.config))[:2] == (0, [])


def test_good_behind_haproxy(doctor: Any, server: Server, need_program: NeedProgram, tmp_path: Path) -> None:
    port = free_port()
    with run_haproxy(need_program("haproxy"), tmp_path, haproxy_config(port, server.port), [port]) as proxy:
        url = f"ws://127.0.0.1:{port}/ws"
        wait_until(lambda: opens(url))
        assert doctor(url, "--idle", "1", "--proxy-config", str(proxy.config))[:2] == (0, [])


# Faults in nginx

UPGRADE = "proxy_set_header Upgrade $http_upgrade;"
CONNECTION = "proxy_set_header Connection $connection_upgrade;"
HOST = "proxy_set_header Host $host:$server_port;"
#: Name of the finding, status of the answer, what is changed in the recipe, and what the client can read.
IN_NGINX: list[tuple[str, int, dict[str, str], str]] = [
    ("upgrade-lost", 426, {UPGRADE: ""}, "proxy_set_header Upgrade $http_upgrade"),
    ("connection-lost", 426, {CONNECTION: 'proxy_set_header Connection "";'}, "Connection: Upgrade"),
    ("http-1.0", 400, {"proxy_http_version 1.1;": ""}, "proxy_http_version 1.1"),
    ("port-dropped", 403, {HOST: "proxy_set_header Host $host;"}, "proxy_set_header Host $host:$server_port"),
    ("host-changed", 403, {HOST: "proxy_set_header Host backend.internal;"}, "backend.internal"),
    ("proxy-auth", 401, {HOST: f'{HOST} auth_basic "x"; auth_basic_user_file /dev/null;'}, "401 Authorization"),
    ("proxy-path", 404, {"location / {": "location /elsewhere {"}, "404 Not Found"),
    ("upstream-down", 502, {}, "502 Bad Gateway"),
    ("proxy-forbids", 403, {HOST: f"{HOST} deny all;"}, "403 Forbidden"),
]


@pytest.mark.parametrize(("name", "status", "changes", "text"), IN_NGINX, ids=[one[0] for one in IN_NGINX])
def test_fault_in_nginx(
    doctor: Any, name: str, status: int, changes: dict[str, str], text: str, server: Server, tmp_path: Path,
    need_program: NeedProgram, capsys: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    site = nginx_site(server.port if name != "upstream-down" else 1, port, changes)
    with run_nginx(need_program("nginx"), tmp_path, site, [port]):
        url = f"ws://127.0.0.1:{port}/ws"
        found = doctor(url)
        assert found[:2] == (1, [(name, "proxy")]), found.text
        # What clients see, with an Origin as browsers send it.
        assert main(["connect", url, "--origin", f"http://127.0.0.1:{port}", "--listen"]) == 1
        seen = capsys.readouterr().err
        assert seen.startswith(f"{status} ") and text in re.sub("<[^>]*>", "", seen)


def test_upstream_slow(doctor: Any, need_program: NeedProgram, tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        upstream: int = mute.getsockname()[1]
        site = nginx_site(upstream, port, {"proxy_read_timeout 60s;": "proxy_read_timeout 1s;"})
        with run_nginx(need_program("nginx"), tmp_path, site, [port]):
            assert doctor(f"ws://127.0.0.1:{port}/ws")[:2] == (1, [("upstream-slow", "WSGI server")])


def test_limit_conn(doctor: Any, server: Server, need_program: NeedProgram, tmp_path: Path) -> None:
    port = free_port()
    site = "limit_conn_zone $server_name zone=one:1m;\n"
    site += nginx_site(server.port, port, {HOST: f"{HOST} limit_conn one 1;"})
    with run_nginx(need_program("nginx"), tmp_path, site, [port]):
        with connect(f"ws://127.0.0.1:{port}/ws"):
            assert doctor(f"ws://127.0.0.1:{port}/ws")[:2] == (1, [("proxy-limit", "proxy")])


def test_idle_cut(doctor: Any, need_program: NeedProgram, tmp_path: Path) -> None:
    port = free_port()
    with serve("gthread", APP, env={"MANAGER": '{"ping_interval": null}'}) as quiet:
        site = nginx_site(quiet.port, port, {"proxy_read_timeout 60s;": "proxy_read_timeout 1s;"})
        with run_nginx(need_program("nginx"), tmp_path, site, [port]):
            found = doctor(f"ws://127.0.0.1:{port}/ws", "--idle", "4", "--proxy-config", str(tmp_path / "site.conf"))
    assert found[:2] == (1, [("idle-cut", "proxy"), ("idle-cut", "proxy")])
    assert re.search(r"cut after 1\.\d s", found.text)


def test_hard_stop(doctor: Any, server: Server, need_program: NeedProgram, tmp_path: Path) -> None:
    """Of both, with configurations that they run with."""
    port, other = free_port(), free_port()
    changed = haproxy_config(other, server.port, changes={"global\n": "global\n    hard-stop-after 10s\n"})
    (tmp_path / "nginx").mkdir()
    with run_nginx(
        need_program("nginx"), tmp_path / "nginx", nginx_site(server.port, port), [port], "worker_shutdown_timeout 9s;",
    ) as nginx, run_haproxy(need_program("haproxy"), tmp_path, changed, [other]) as haproxy:
        for proxy, line in ((nginx, "worker_shutdown_timeout 9s;"), (haproxy, "hard-stop-after 10s")):
            found = doctor("--proxy-config", str(proxy.config))
            assert found[:2] == (1, [("hard-stop", "proxy")]) and line in found.text


# TLS


def test_tls(
    doctor: Any, server: Server, certificate: Path, need_program: NeedProgram, tmp_path: Path,
) -> None:
    openssl, nginx = need_program("openssl"), need_program("nginx")
    certificates = {"certificate-unknown": certificate}
    planted = {"certificate-expired": {"end": "20200102000000Z"}, "certificate-name": {"names": "DNS:elsewhere"}}
    for name, options in planted.items():
        (tmp_path / name).mkdir()
        certificates[name] = make_certificate(openssl, tmp_path / name, **options)
    plain, ports, site = free_port(), [free_port() for _ in range(4)], ""
    for port, file, more in zip(ports, [*certificates.values(), certificate], ["", "", "", "ssl_verify_client on;"]):
        site += (
            f"server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {file}; ssl_certificate_key {file}; {more}"
            f"ssl_client_certificate {certificate}; return 200; }}\n")
    site += recipe("nginx.conf", {
        "listen 80;": f"listen 127.0.0.1:{plain};", "listen 443 ssl http2;": f"listen 127.0.0.1:{free_port()};",
        "ssl_certificate ": "# ", "ssl_certificate_key": "#"})
    with run_nginx(nginx, tmp_path, site, [*ports, plain]):
        for port, (name, file) in zip(ports, certificates.items()):
            trust = [] if name == "certificate-unknown" else ["--ca", str(file)]
            assert doctor(f"wss://127.0.0.1:{port}/ws", *trust)[:2] == (1, [(name, "proxy")])
        assert doctor(f"wss://127.0.0.1:{ports[3]}/", "--insecure")[:2] == (1, [("client-certificate", "proxy")])
        shown = doctor(f"wss://127.0.0.1:{ports[3]}/", "--insecure", "--certificate", str(certificate))
        assert shown[:2] == (1, [("no-websocket-here", "application")])
        assert doctor(f"ws://127.0.0.1:{ports[0]}/ws")[:2] == (1, [("tls-expected", "client")])
        assert doctor(f"ws://127.0.0.1:{plain}/ws")[:2] == (1, [("redirect-to-https", "client")])
    assert doctor(f"wss://127.0.0.1:{server.port}/ws")[:2] == (1, [("tls-missing", "client")])


def test_forwarded_allow_ips(
    doctor: Any, server: Server, certificate: Path, need_program: NeedProgram, tmp_path: Path,
) -> None:
    """It is seen where a proxy does TLS and gunicorn listens for other hosts."""
    plain, secure = free_port(), free_port()
    site = nginx_tls_site(server.port, plain, secure, certificate)
    options = ("--gunicorn", "--threads", "16", "--bind", "0.0.0.0:8000")
    with run_nginx(need_program("nginx"), tmp_path, site, [plain, secure]):
        url = f"wss://127.0.0.1:{secure}/ws"
        found = doctor(url, "--ca", str(certificate), *options, "app:app")
        assert found[:2] == (1, [("forwarded-allow-ips", "WSGI server")])
        assert doctor(url, "--ca", str(certificate), *options, "--forwarded-allow-ips", "*", "app:app")[0] == 0


def test_tls_between_proxy_and_server(
    doctor: Any, certificate: Path, need_program: NeedProgram, tmp_path: Path,
) -> None:
    port, bind = free_port(), free_port()
    options = ("--certfile", str(certificate), "--keyfile", str(certificate))
    with serve("gthread", APP, *options, bind=f"127.0.0.1:{bind}"):
        with run_nginx(need_program("nginx"), tmp_path, nginx_site(bind, port), [port]):
            assert doctor(f"ws://127.0.0.1:{port}/ws")[:2] == (1, [("upstream-down", "proxy")])
        assert doctor(f"ws://127.0.0.1:{bind}/ws")[:2] == (1, [("tls-expected", "client")])


# Faults in HAProxy


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_proxy_protocol(doctor: Any, option: str, server: Server, need_program: NeedProgram, tmp_path: Path) -> None:
    port = free_port()
    text = haproxy_config(port, server.port, changes={
        "option httpchk GET /health\n": "\n", "check inter 2s\n": f"{option}\n"})
    with run_haproxy(need_program("haproxy"), tmp_path, text, [port]):
        assert doctor(f"ws://127.0.0.1:{port}/ws")[:2] == (1, [("proxy-protocol", "WSGI server")])


def test_haproxy_without_a_server(doctor: Any, need_program: NeedProgram, tmp_path: Path) -> None:
    port = free_port()
    text = haproxy_config(port, 1).replace("inter 2s", "inter 10ms")
    with run_haproxy(need_program("haproxy"), tmp_path, text, [port]) as proxy:
        wait_until(lambda: "no server available" in proxy.log())
        assert doctor(f"ws://127.0.0.1:{port}/ws")[:2] == (1, [("no-upstream", "proxy")])


def test_server_maxconn(doctor: Any, server: Server, need_program: NeedProgram, tmp_path: Path) -> None:
    port = free_port()
    text = haproxy_config(port, server.port, changes={
        "option httpchk GET /health\n": "\n", "check inter 2s backup": "maxconn 1 backup", "check inter 2s\n":
        "maxconn 1\n", "timeout connect 5s": "timeout connect 1s"})
    with run_haproxy(need_program("haproxy"), tmp_path, text, [port]) as proxy:
        with connect(f"ws://127.0.0.1:{port}/ws"):
            found = doctor(f"ws://127.0.0.1:{port}/ws", "--proxy-config", str(proxy.config))
            assert ("server-maxconn", "proxy") in found.names and found.status == 1, found.text


# Faults in the server, the application, the machine

#: Name of the finding, its hop, path.
IN_APPLICATION = [
    ("not-found", "application", "/nowhere"), ("wrong-slash", "client", "/ws/"), ("redirect", "application", "/login"),
    ("closed-at-once", "application", "/closing"), ("subprotocol", "client", "/picky"),
    ("application-fails", "application", "/fails"), ("no-websocket-here", "application", "/page"),
]


@pytest.mark.parametrize(("name", "hop", "path"), IN_APPLICATION)
def test_fault_in_application(doctor: Any, name: str, hop: str, path: str, server: Server) -> None:
    assert doctor(server.url(path, "ws"))[:2] == (1, [(name, hop)])


@pytest.mark.parametrize(("name", "hop", "url"), [
    ("connection-refused", "network", "ws://127.0.0.1:1/ws"), ("name-unknown", "network", "ws://nowhere.invalid/ws")])
def test_nobody(doctor: Any, name: str, hop: str, url: str) -> None:
    assert doctor(url)[:2] == (1, [(name, hop)])


@pytest.mark.parametrize(("name", "options"), [
    ("connection-limit", '{"max_connections": 1}'), ("per-address", '{"max_connections_per_address": 1}')])
def test_limits(doctor: Any, name: str, options: str) -> None:
    with serve("gthread", APP, env={"MANAGER": options}) as server:
        with connect(server.url("/ws", "ws")):
            assert doctor(server.url("/ws", "ws"))[:2] == (1, [(name, "application")])


def test_open_files(doctor: Any) -> None:
    """The limit is seen beforehand by the process id, and afterwards by the refusal."""
    with serve("gthread", APP) as server, ExitStack() as stack:
        worker = server.worker()
        assert doctor("--connections", "100", "--pid", str(worker))[:2] == (0, [])
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (100, 100))
        assert doctor("--connections", "100", "--pid", str(worker))[:2] == (1, [("open-files", "machine")])
        refused = 0
        while refused < 5:  # What the first ones took is given back a moment later.
            try:
                stack.enter_context(connect(server.url("/ws", "ws")))
            except HandshakeRefused:
                refused += 1
                time.sleep(0.2)
        assert doctor(server.url("/ws", "ws"))[:2] == (1, [("open-files", "machine")])


def test_threads_limit(doctor: Any) -> None:
    """There is no room for another stack; the tests do not run in a control group of their own.

    One HTTP thread, which is there already: gunicorn's worker ends when it cannot start one more.
    """
    with serve("gthread", APP, "--threads", "1") as server, ExitStack() as stack:
        assert doctor(server.url("/ws", "ws"))[:2] == (0, [])  # All that is imported late is there.
        worker = server.worker()
        size = int(re.findall(r"VmSize:\s+(\d+)", Path(f"/proc/{worker}/status").read_text())[0]) << 10
        resource.prlimit(worker, resource.RLIMIT_AS, (size + (1 << 20), -1))
        while (found := doctor(server.url("/ws", "ws"))).status == 0:  # What one refusal frees may do for another.
            with suppress(HandshakeRefused):
                for _ in range(100):
                    stack.enter_context(connect(server.url("/ws", "ws")))
        assert found[:2] == (1, [("threads-limit", "machine")]), found.text


def test_slow_clients(doctor: Any) -> None:
    """Two half requests hold both threads."""
    with serve("gthread", APP, "--threads", "2") as server, ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            sock.sendall(b"GET / HTTP/1.1\r\nHost:")
        found = doctor(
            server.url("/ws", "ws"), "--timeout", "1", "--gunicorn", "--threads", "2", "-b", "0.0.0.0:80", "a:b")
        assert found[:2] == (1, [("all-hangs", "WSGI server"), ("few-threads", "WSGI server")])


def test_broadcast_lost(doctor: Any, need_program: NeedProgram, tmp_path: Path) -> None:
    """Two servers that know nothing of each other."""
    port = free_port()
    with serve("gthread", APP) as one, serve("gthread", APP) as two:
        assert doctor(one.url("/chat", "ws"), "--broadcast", "hello")[:2] == (0, [])
        site = nginx_site(one.port, port, {"keepalive 16;": f"server 127.0.0.1:{two.port};"})
        with run_nginx(need_program("nginx"), tmp_path, site, [port]):
            found = doctor(f"ws://127.0.0.1:{port}/chat", "--broadcast", "hello")
            assert found[:2] == (1, [("broadcast-lost", "WSGI server")])
            assert "reached 4 of 8" in found.text


#: Name of the finding, arguments of gunicorn.
IN_SETTINGS = [
    ("worker-class", ["-k", "gevent", "app:app"]), ("worker-class", ["-k", "uvicorn.workers.UvicornWorker", "app:app"]),
    ("few-threads", ["-b", "0.0.0.0:8000", "--threads", "2", "app:app"]),
    ("graceful-timeout", ["--graceful-timeout", "60", "app:app"]),
    ("max-requests", ["--max-requests", "10", "app:app"]),
    ("tls-in-server", ["--certfile", "a", "--keyfile", "b", "app:app"]),
    ("module-name", ["python -m gunicorn app:app"]),
]


@pytest.mark.parametrize(("name", "arguments"), IN_SETTINGS)
def test_fault_in_settings(
    doctor: Any, name: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the command line, from GUNICORN_CMD_ARGS and from a configuration file."""
    monkeypatch.chdir(tmp_path)
    assert doctor("--gunicorn", *arguments)[:2] == (1, [(name, "WSGI server")])
    if len(arguments) > 1:
        monkeypatch.setenv("GUNICORN_CMD_ARGS", " ".join(arguments[:-1]))
        assert doctor("--gunicorn", "app:app")[:2] == (1, [(name, "WSGI server")])


def test_http_2_only(doctor: Any) -> None:
    options = ("--http-protocols", "h2,h1", "--http2-cleartext", "prior-knowledge")
    if not hasattr(gunicorn.config, "HTTP2Cleartext"):
        pytest.skip("this version of gunicorn has no HTTP/2 without TLS")
    with serve("gthread", APP, *options) as server:
        found = doctor(server.url("/ws", "ws"), "--gunicorn", *options, "app:app")
        assert found[:2] == (1, [("http-2-only", "WSGI server"), ("http-2-only", "WSGI server")])


def test_asgi_wrapper(doctor: Any, tmp_path: Path) -> None:
    """hypercorn serves WSGI through a wrapper of its own."""
    port = free_port()
    command = [sys.executable, "-m", "hypercorn", "--bind", f"127.0.0.1:{port}", f"wsgi:{APP}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=TESTS, stdout=log, stderr=log)
    try:
        wait_until(lambda: is_open(port), 30)
        assert doctor(f"ws://127.0.0.1:{port}/ws")[:2] == (1, [("asgi-wrapper", "WSGI server")])
    finally:
        process.terminate()
        process.wait(10)


def test_gevent_worker(doctor: Any) -> None:
    options = ("--worker-class", "gevent")
    with serve("gthread", APP, *options) as server:
        found = doctor(server.url("/ws", "ws"), "--gunicorn", *options, "app:app")
        assert found[:2] == (1, [("server-cannot", "WSGI server"), ("worker-class", "WSGI server")])


def test_asgi_worker(doctor: Any) -> None:
    if "asgi" not in gunicorn.workers.SUPPORTED_WORKERS:
        pytest.skip("this version of gunicorn has none")
    with serve("gthread", APP, "--worker-class", "asgi") as server:
        assert doctor(server.url("/ws", "ws"))[1] == [("application-fails", "application")]
