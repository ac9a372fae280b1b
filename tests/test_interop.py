"""Independent clients talk to wsthread: websockets, websocket-client and Node's ws."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import websocket
from servers import Server, serve, wait_until
from websockets.sync.client import connect

NODE = Path(__file__).parent / "node"
# Around the borders of the length fields (RFC 6455 5.2).
SMALL = (0, 1, 125, 126, 65535, 65536)
HUGE = 16 << 20
TIMEOUT = 30


@pytest.fixture(scope="module", params=["gthread", "werkzeug", "sync", "werkzeug-single"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve(request.param, "apps.echo:app") as running:
        yield running
        assert running.errors() == []


def text(octets: int) -> str:
    """Return a text that has so many octets in UTF-8."""
    return "ä€😀" * (octets // 9) + "x" * (octets % 9)


def echo_websockets(url: str, messages: list[str | bytes], compression: str | None = None) -> list[str | bytes]:
    with connect(url, max_size=None, open_timeout=TIMEOUT, close_timeout=TIMEOUT, compression=compression) as client:
        assert len(client.protocol.extensions) == (compression is not None)
        received = []
        for message in messages:
            client.send(message)
            received.append(client.recv(timeout=TIMEOUT))
    assert client.protocol.close_code == 1000
    return received


def echo_websockets_deflate(url: str, messages: list[str | bytes]) -> list[str | bytes]:
    return echo_websockets(url, messages, "deflate")


def echo_websocket_client(url: str, messages: list[str | bytes]) -> list[str | bytes]:
    client = websocket.create_connection(url, timeout=TIMEOUT, skip_utf8_validation=True)  # It is slow.
    received: list[str | bytes] = []
    for message in messages:
        client.send(message, websocket.ABNF.OPCODE_TEXT if isinstance(message, str) else websocket.ABNF.OPCODE_BINARY)
        received.append(client.recv())
    client.send_close()
    assert client.recv_data(control_frame=True) == (websocket.ABNF.OPCODE_CLOSE, b"\x03\xe8")
    client.shutdown()
    return received


CLIENTS = [echo_websockets, echo_websockets_deflate, echo_websocket_client]


@pytest.mark.parametrize("path", ["/echo", "/simple"])
@pytest.mark.parametrize("echo", CLIENTS)
def test_small(server: Server, echo: Callable[[str, list[str | bytes]], list[str | bytes]], path: str) -> None:
    messages: list[str | bytes] = [*map(text, SMALL), *map(os.urandom, SMALL)]
    assert echo(server.url(path, "ws"), messages) == messages


@pytest.mark.parametrize("server", ["gthread", "werkzeug"], indirect=True)
@pytest.mark.parametrize(
    "echo", [echo_websockets, echo_websocket_client, pytest.param(echo_websockets_deflate, marks=pytest.mark.slow)])
def test_huge(server: Server, echo: Callable[[str, list[str | bytes]], list[str | bytes]]) -> None:
    messages: list[str | bytes] = [text(HUGE), os.urandom(HUGE)]
    # A plain assert would print what differs.
    assert echo(server.url("/echo", "ws"), messages) == messages or pytest.fail("not what was sent")


@pytest.fixture
def node(need_program: Callable[[str], str]) -> str:
    """Node.js, with the modules of tests/node/package.json."""
    program = need_program("node")
    if not (NODE / "node_modules" / "ws").is_dir():
        message = "the Node.js modules are not installed: make integration does it where there is npm"
        if os.environ.get("CI"):
            pytest.fail(f"{message}, but CI must not skip")
        pytest.skip(message)
    return program


@pytest.mark.slow  # Not that it were, but make test needs nothing but Python.
@pytest.mark.parametrize("compression", ["plain", "deflate"])
def test_node(server: Server, node: str, compression: str) -> None:
    sizes = [*SMALL, HUGE] if server.kind in ("gthread", "werkzeug") else SMALL
    done = subprocess.run(
        [node, NODE / "echo_client.js", server.url("/echo", "ws"), compression, *map(str, sizes)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=2 * TIMEOUT)
    assert done.stdout.splitlines() == [f"{kind} {size}" for size in sizes for kind in ("text", "binary")]
    assert done.returncode == 0
    wait_until(lambda: [4321, "done"] in server.stats()["closed"])
