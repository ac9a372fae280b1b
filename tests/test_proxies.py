"""Behind nginx, HAProxy and Caddy, with the recipes of examples/deployment: what clients see, reloads and all."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import TEXT, frame, handshake
from h2.connection import H2Connection
from h2.events import DataReceived, RemoteSettingsChanged, ResponseReceived
from h2.settings import SettingCodes
from herd import Herd
from proxies import (
    NeedProgram, Proxy, free_port, make_certificate, nginx_site, nginx_tls_site, recipe, run_caddy, run_haproxy,
    run_nginx,
)
from servers import Server, serve, wait_until

from wsthread.client import connect
from wsthread.exceptions import ConnectionClosed, HandshakeRefused

pytestmark = pytest.mark.slow
APP = "apps.deployed:app"
GUNICORN = ("--threads", "16")
#: Seconds of a proxy's idle timeout, and between two Pings of a server that keeps below it.
IDLE, PING = 2.0, 0.5
WITH_PINGS = {"MANAGER": json.dumps({"ping_interval": PING}), "PROXY_FIX": "1"}
WITHOUT_PINGS = {"MANAGER": json.dumps({"ping_interval": None}), "PROXY_FIX": "1"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """gunicorn whose WebSockets get Pings often."""
    with serve("gthread", APP, "--threads", "16", env=WITH_PINGS) as found:
        yield found
        assert found.errors() == []


@pytest.fixture(scope="module")
def quiet() -> Iterator[Server]:
    """gunicorn whose WebSockets get no Pings."""
    with serve("gthread", APP, "--threads", "16", env=WITHOUT_PINGS) as found:
        yield found
        assert found.errors() == []


@pytest.fixture
def nginx(need_program: NeedProgram) -> str:
    return need_program("nginx")


@pytest.fixture
def haproxy(need_program: NeedProgram) -> str:
    return need_program("haproxy")


def haproxy_config(port: int, *upstreams: int, changes: dict[str, str] | None = None) -> str:
    """Return the recipe of HAProxy without TLS and the redirect to it."""
    one, two = (*upstreams, *upstreams)[:2]
    return recipe("haproxy.cfg", {
        **(changes or {}), "maxconn 20000": "maxconn 2000", "bind :80\n": f"bind 127.0.0.1:{port}\n",
        "bind :443 ssl crt /etc/ssl/chat/chat.pem alpn h2,http/1.1\n": f"bind 127.0.0.1:{free_port()}\n",
        "http-request redirect scheme https code 308 unless { ssl_fc }\n": "\n",
        "127.0.0.1:8000": f"127.0.0.1:{one}", "127.0.0.1:8001": f"127.0.0.1:{two}"})


def echo(url: str, payload: str | bytes = "hello", **options: object) -> None:
    """Open a WebSocket, as a page of its host, and compare an echo."""
    origin = re.sub("^ws", "http", url.partition("/ws")[0])
    with connect(url, origin=origin, **options) as ws:  # type: ignore[arg-type]
        ws.send(payload)
        assert ws.receive(30) == payload


def refusal(url: str, **options: object) -> HandshakeRefused:
    """Return what a handshake that must fail is answered with."""
    with pytest.raises(HandshakeRefused) as caught:
        connect(url, **options)  # type: ignore[arg-type]
    return caught.value


BIG = random.Random(1).randbytes(16 << 20)


# With the recipes


def test_nginx(nginx: str, server: Server, tmp_path: Path) -> None:
    port = free_port()
    with run_nginx(nginx, tmp_path, nginx_site(server.port, port), [port]) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/ws"
        echo(url)
        echo(url, BIG)
        # The client's address and scheme come through ProxyFix, not what the client says of itself.
        with connect(url, headers={"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}) as ws:
            ws.send("who")
            assert json.loads(ws.receive()).items() >= {"scheme": "http", "address": "127.0.0.1"}.items()


def test_haproxy(haproxy: str, server: Server, tmp_path: Path) -> None:
    port = free_port()
    with run_haproxy(haproxy, tmp_path, haproxy_config(port, server.port), [port]) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/ws"
        wait_until(lambda: opens(url))
        echo(url)
        echo(url, BIG)


def opens(url: str) -> bool:
    try:
        connect(url, timeout=3).terminate()
    except (HandshakeRefused, OSError, ConnectionClosed):
        return False
    return True


def test_caddy(need_program: NeedProgram, server: Server, tmp_path: Path) -> None:
    port = free_port()
    text = caddyfile(port, server.port, tmp_path)
    with run_caddy(need_program("caddy"), tmp_path, text, [port]) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/ws"
        echo(url)
        echo(url, BIG)
        with connect(url) as ws:
            ws.send("who")
            assert json.loads(ws.receive()).items() >= {"scheme": "http", "address": "127.0.0.1"}.items()


def caddyfile(port: int, upstream: int, directory: Path) -> str:
    """Return the recipe of Caddy without TLS, which would ask for a certificate."""
    site = recipe("Caddyfile", {"chat.example": f"http://127.0.0.1:{port}", "127.0.0.1:8000": f"127.0.0.1:{upstream}"})
    return f"{{\n    admin unix/{directory}/admin.sock\n    storage file_system {directory}/storage\n}}\n{site}"


@pytest.fixture(scope="module")
def certificate(need_program: NeedProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key in the same file."""
    return make_certificate(need_program("openssl"), tmp_path_factory.mktemp("tls"))


def test_nginx_with_tls(nginx: str, server: Server, certificate: Path, tmp_path: Path) -> None:
    """The recipe as it stands: TLS, HTTP/2 beside it, and a redirect that no WebSocket follows."""
    plain, secure = free_port(), free_port()
    site = nginx_tls_site(server.port, plain, secure, certificate)
    context = ssl.create_default_context(cafile=certificate)
    with run_nginx(nginx, tmp_path, site, [plain, secure]):
        url = f"wss://127.0.0.1:{secure}/ws"
        echo(url, ssl_context=context)
        echo(url, BIG, ssl_context=context)
        with connect(url, ssl_context=context) as ws:
            ws.send("who")
            assert json.loads(ws.receive())["scheme"] == "https"
        assert refusal(f"ws://127.0.0.1:{plain}/ws").status == 308
        assert "plain HTTP request was sent to HTTPS port" in str(refusal(f"ws://127.0.0.1:{secure}/ws"))


def test_haproxy_with_tls_and_http_2(
    haproxy: str, server: Server, certificate: Path, tmp_path: Path, need_program: NeedProgram,
) -> None:
    """A WebSocket over HTTP/2 (RFC 8441) ends at HAProxy, which opens one with HTTP/1.1."""
    plain, secure = free_port(), free_port()
    text = recipe("haproxy.cfg", {
        "maxconn 20000": "maxconn 2000",
        "bind :80\n": f"bind 127.0.0.1:{plain}\n", "bind :443": f"bind 127.0.0.1:{secure}",
        "/etc/ssl/chat/chat.pem": str(certificate), "127.0.0.1:8000": f"127.0.0.1:{server.port}",
        "127.0.0.1:8001": f"127.0.0.1:{server.port}"})
    context = ssl.create_default_context(cafile=certificate)
    with run_haproxy(haproxy, tmp_path, text, [plain, secure]):
        url = f"wss://127.0.0.1:{secure}/ws"
        wait_until(lambda: not isinstance(status_of(url, context), int))
        echo(url, ssl_context=context)
        assert refusal(f"ws://127.0.0.1:{plain}/ws").status == 308
        assert extended_connect(secure, context) == (1, b"200", b"hello")


def status_of(url: str, context: ssl.SSLContext) -> int | None:
    try:
        connect(url, ssl_context=context).terminate()
    except HandshakeRefused as error:
        return error.status
    return None


def extended_connect(port: int, context: ssl.SSLContext) -> tuple[int, bytes, bytes]:
    """Open a WebSocket over HTTP/2; return SETTINGS_ENABLE_CONNECT_PROTOCOL, the status and an echo."""
    context.set_alpn_protocols(["h2"])
    peer, seen = H2Connection(), list[object]()
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as sock:

            def read_until(kind: type[Any]) -> Any:
                sock.sendall(peer.data_to_send())
                while not (found := [event for event in seen if isinstance(event, kind)]):
                    seen.extend(peer.receive_data(sock.recv(65536)))
                    sock.sendall(peer.data_to_send())
                return found[-1]

            peer.initiate_connection()
            read_until(RemoteSettingsChanged)
            allowed = peer.remote_settings.get(SettingCodes.ENABLE_CONNECT_PROTOCOL, 0)
            peer.send_headers(1, [
                (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/ws"),
                (":authority", f"localhost:{port}"), ("sec-websocket-version", "13")])
            status = dict(read_until(ResponseReceived).headers)[b":status"]
            peer.send_data(1, frame(TEXT, "hello"))
            return allowed, status, read_until(DataReceived).data[2:]


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_proxy_protocol(haproxy: str, option: str, tmp_path: Path) -> None:
    """The address that HAProxy tells before the request is the client's."""
    port = free_port()
    with serve("gthread", APP, "--proxy-protocol", "auto", "--threads", "4") as server:
        text = haproxy_config(port, server.port, changes={
            "option httpchk GET /health\n": "\n", "check inter 2s\n": f"{option}\n"})
        with run_haproxy(haproxy, tmp_path, text, [port]):
            with socket.create_connection(("127.0.0.1", port), 10, ("127.0.0.9", 0)) as sock:
                sock.sendall(handshake("/ws", port))
                assert b" 101 " in sock.recv(4096)
                sock.sendall(frame(TEXT, "who"))
                assert json.loads(sock.recv(4096)[2:])["address"] == "127.0.0.9"


def test_unix_socket(nginx: str, tmp_path: Path) -> None:
    """gunicorn trusts whoever connects there, so ProxyFix knows the client."""
    port, path = free_port(), tmp_path / "app.sock"
    with serve("gthread", APP, "--threads", "4", env=WITH_PINGS, bind=f"unix:{path}"):
        with run_nginx(nginx, tmp_path, nginx_site(f"unix:{path}", port), [port]):
            url = f"ws://127.0.0.1:{port}/ws"
            echo(url)
            with connect(url) as ws:
                ws.send("who")
                assert json.loads(ws.receive())["address"] == "127.0.0.1"


@pytest.mark.parametrize(("allowed", "scheme"), [("203.0.113.1", "http"), ("127.0.0.1", "https")])
def test_forwarded_allow_ips(allowed: str, scheme: str) -> None:
    """Without ProxyFix gunicorn believes X-Forwarded-Proto, from the proxies that it is told of."""
    with serve("gthread", APP, "--forwarded-allow-ips", allowed) as server:
        with connect(server.url("/ws", "ws"), headers={"X-Forwarded-Proto": "https"}) as ws:
            ws.send("who")
            assert json.loads(ws.receive())["scheme"] == scheme


# Idle connections

IDLE_PROXIES: dict[str, dict[str, str]] = {
    "nginx": {"proxy_read_timeout 60s;": f"proxy_read_timeout {IDLE:g}s;"},
    "tunnel": {"timeout tunnel 1h": f"timeout tunnel {IDLE:g}s"},
    "no tunnel": {
        "timeout tunnel 1h": "", "timeout client 60s": f"timeout client {IDLE:g}s",
        "timeout server 60s": f"timeout server {IDLE:g}s"},
}


@pytest.mark.parametrize("kind", IDLE_PROXIES)
def test_idle(kind: str, need_program: NeedProgram, server: Server, quiet: Server, tmp_path: Path) -> None:
    """200 that get Pings outlive the proxy's timeout; 20 that get none are cut by it, without a Close."""
    port, other = free_port(), free_port()
    changes = IDLE_PROXIES[kind]
    if kind == "nginx":
        text = nginx_site(server.port, port, changes)
        site = nginx_site(quiet.port, other, changes).replace("chat", "quiet")
        site = re.sub(r"map .*?\n}", "", site, flags=re.DOTALL)  # It is there already.
        running = run_nginx(need_program("nginx"), tmp_path, text + site, [port, other])
    else:
        text = haproxy_config(port, server.port, changes=changes)
        text += f"""
listen quiet
    bind 127.0.0.1:{other}
    server one 127.0.0.1:{quiet.port}
"""
        running = run_haproxy(need_program("haproxy"), tmp_path, text, [port, other])
    with running:
        wait_until(lambda: opens(f"ws://127.0.0.1:{port}/ws"))
        with Herd(f"ws://127.0.0.1:{port}/ws", 200) as herd, Herd(f"ws://127.0.0.1:{other}/ws", 20) as cut:
            begin = time.monotonic()
            both = Both(herd, cut)
            both.live(IDLE + 1.5)
            cut.wait(cut.ended)
            assert cut.codes() == {1006: 20}
            assert all(client.closed_at - begin > IDLE - 0.5 for client in cut.clients)
            assert herd.codes() == {None: 200}
            assert herd.ask("still here") == ["still here"] * 200


class Both:
    """Two herds that live at a time."""

    def __init__(self, *herds: Herd) -> None:
        self._herds = herds

    def live(self, seconds: float) -> None:
        """Let both live for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for herd in self._herds:
                herd.live()


# Reloads and restarts


@pytest.mark.parametrize("hard", [False, True], ids=["plain", "worker_shutdown_timeout"])
def test_reload_of_nginx(nginx: str, hard: bool, server: Server, tmp_path: Path) -> None:
    """Its old worker stays until the connections end, unless it is told to cut them."""
    port = free_port()
    main = "worker_shutdown_timeout 1s;" if hard else ""
    with run_nginx(nginx, tmp_path, nginx_site(server.port, port), [port], main) as proxy:
        with Herd(f"ws://127.0.0.1:{port}/ws", 20) as herd:
            before = children(proxy)
            proxy.signal(signal.SIGHUP)
            herd.wait(lambda: children(proxy) - before)
            if hard:
                herd.wait(herd.ended)
                assert herd.codes() == {1006: 20}
            else:
                Both(herd).live(1)
                assert herd.ask("still here") == ["still here"] * 20
        wait_until(lambda: opens(f"ws://127.0.0.1:{port}/ws"))


@pytest.mark.parametrize("hard", [False, True], ids=["plain", "hard-stop-after"])
def test_reload_of_haproxy(haproxy: str, hard: bool, server: Server, tmp_path: Path) -> None:
    port = free_port()
    changes = {"global\n": "global\n    hard-stop-after 1s\n"} if hard else {}
    with run_haproxy(haproxy, tmp_path, haproxy_config(port, server.port, changes=changes), [port]) as proxy:
        wait_until(lambda: opens(f"ws://127.0.0.1:{port}/ws"))
        with Herd(f"ws://127.0.0.1:{port}/ws", 20) as herd:
            before = children(proxy)
            proxy.signal(signal.SIGUSR2)
            herd.wait(lambda: children(proxy) - before)
            if hard:
                herd.wait(herd.ended)
                assert herd.codes() == {1006: 20}
            else:
                Both(herd).live(1)
                assert herd.ask("still here") == ["still here"] * 20
        wait_until(lambda: opens(f"ws://127.0.0.1:{port}/ws"))


def test_reload_of_caddy(need_program: NeedProgram, server: Server, tmp_path: Path) -> None:
    """Caddy itself sends a Close."""
    port, caddy = free_port(), need_program("caddy")
    with run_caddy(caddy, tmp_path, caddyfile(port, server.port, tmp_path), [port]) as proxy:
        with Herd(f"ws://127.0.0.1:{port}/ws", 20) as herd:
            proxy.config.write_text(caddyfile(port, server.port, tmp_path).replace("reverse", "encode gzip\n\treverse"))
            subprocess.run(
                [caddy, "reload", "--config", str(proxy.config), "--adapter", "caddyfile", "--address",
                 f"unix/{tmp_path}/admin.sock"], check=True, capture_output=True, timeout=30)
            herd.wait(herd.ended)
            assert herd.codes() == {1001: 20}
        assert opens(f"ws://127.0.0.1:{port}/ws")


def children(proxy: Proxy) -> set[int]:
    """Return the processes that a proxy has started."""
    path = Path(f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children")
    return {int(found) for found in path.read_text().split()}


@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_upstream_restarts(kind: str, need_program: NeedProgram, tmp_path: Path) -> None:
    """Clients of the one that stops get 1001, the others live on, and who comes back finds a server at once."""
    port, ports = free_port(), [free_port(), free_port()]
    if kind == "nginx":
        text = nginx_site(ports[0], port, {"keepalive 16;": f"server 127.0.0.1:{ports[1]} fail_timeout=1s;"})
        running = run_nginx(need_program("nginx"), tmp_path, text, [port])
    else:
        text = haproxy_config(port, *ports, changes={"inter 2s backup": "inter 200ms", "inter 2s": "inter 200ms"})
        running = run_haproxy(need_program("haproxy"), tmp_path, text, [port])
    url = f"ws://127.0.0.1:{port}/ws"
    with serve("gthread", APP, *GUNICORN, bind=f"127.0.0.1:{ports[0]}") as one, running:
        with serve("gthread", APP, *GUNICORN, bind=f"127.0.0.1:{ports[1]}") as other:
            wait_until(lambda: opens(url))
            with Herd(url, 20) as herd:
                workers = Counter(json.loads(answer)["pid"] for answer in herd.ask("who"))
                wait_until(lambda: len(workers) == 2 or workers.update(whose(url)))
                left = [client for client in herd.clients if json.loads(client.messages[0])["pid"] == one.worker()]
                other.signal(signal.SIGTERM)
                herd.wait(lambda: all(client.ended for client in herd.clients if client not in left))
                assert {client.close_code for client in herd.clients if client not in left} <= {1001}
                assert not any(client.ended for client in left)
                wait_until(lambda: other.process.poll() is not None)
                assert all(opens(url) for _ in range(4))
        with serve("gthread", APP, *GUNICORN, bind=f"127.0.0.1:{ports[1]}") as again:
            wait_until(lambda: again.worker() in whose(url), 15)


def whose(url: str) -> Counter[int]:
    """Return the worker that a new connection meets."""
    with connect(url) as ws:
        ws.send("who")
        return Counter([json.loads(ws.receive())["pid"]])
