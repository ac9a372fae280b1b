"""Busy handlers under real servers, and real clients that ping, close, stop, reset and vanish meanwhile.

Each test opens a connection for each kind of work in each style (apps.attended) at the same time, and the figures that
it prints are those of the slowest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from clients import CLOSE, PING, PONG, TEXT, RawClient, frame, handshake
from servers import Server, serve, wait_until
from test_chat import browser
from websockets.asyncio.client import ClientConnection, connect

__all__ = ["browser"]

PROMPT = 1.0  # Seconds within which all that this module is about has to happen.
LOOKING = ("push", "poll", "flood")
CALM = ("push", "poll")  # Without those that keep their clients busy.
ABSENT = ("sleep", "lock", "compute")
STYLES = ("callback", "handler", "route")
APP = "apps.attended:app"


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


# Each server with and without the extension; only the first of them when time is short.
on_all = pytest.mark.parametrize("shared", [
    ("gthread", "1"), slow(("gthread", "0")), slow(("werkzeug", "1")), slow(("werkzeug", "0"))],
    indirect=True, ids="-".join)


@contextlib.contextmanager
def serve_app(kind: str, speedups: str = "1", **options: Any) -> Iterator[Server]:
    with serve(kind, APP, env={"WSTHREAD_SPEEDUPS": speedups, "MANAGER": json.dumps(options)}) as server:
        yield server
    assert server.errors() == []


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve_app(*request.param, ping_interval=None) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Server:
    """A server without connections."""
    post(shared, "/release")
    wait_until(lambda: not any(stats["threads"] for stats in json.loads(shared.get("/stats"))))
    post(shared, "/hold")
    return shared


def post(server: Server, path: str) -> None:
    urllib.request.urlopen(urllib.request.Request(server.url(path), method="POST"), timeout=10).close()


def report(server: Server) -> dict[str, dict[str, Any]]:
    """Return what became of each connection by its name, which is its path."""
    found: dict[str, dict[str, Any]] = json.loads(server.get("/report"))
    return found


def untimely(server: Server, done: Callable[[dict[str, Any]], object], timeout: float = PROMPT) -> dict[str, Any]:
    """Return those connections for which something does not come true promptly."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: all(map(done, report(server).values())), timeout)
    return {name: found for name, found in report(server).items() if not done(found)}


def paths(works: tuple[str, ...] = LOOKING + ABSENT, styles: tuple[str, ...] = STYLES) -> list[str]:
    # One that computes makes all others wait for the GIL.
    return [f"/{style}/{work}" for style in styles for work in works if work != "compute" or style == styles[0]]


def show(what: str, seconds: dict[str, float]) -> None:
    """Print the figure of a row."""
    name, worst = max(seconds.items(), key=lambda item: item[1])
    print(f"FIGURE {what}: {worst:.2f} s ({name})")


# Raw clients


def start(server: Server, path: str, behind: bytes = b"") -> RawClient:
    """Open a WebSocket and let its handler work.

    Args:
        server: the server.
        path: of the handshake.
        behind: what comes in the same segment as the message that lets the handler work.
    """
    client = RawClient(server.port).open(f"{path}?name={path}")
    client.send(frame(TEXT, "go") + behind)
    return client


@contextlib.contextmanager
def started(server: Server, names: list[str], behind: bytes = b"") -> Iterator[dict[str, RawClient]]:
    """Open many, and wait until the handlers work."""
    with contextlib.ExitStack() as stack:
        clients = {name: stack.enter_context(start(server, name, behind)) for name in names}
        wait_until(lambda: len(report(server)) == len(clients))
        yield clients


def in_threads(clients: dict[str, RawClient], function: Callable[[RawClient], float]) -> dict[str, float]:
    """Call a function for all clients at the same time; return what it returned for each."""
    found: dict[str, float] = {}

    def call(name: str, client: RawClient) -> None:
        found[name] = function(client)

    threads = [threading.Thread(target=call, args=item) for item in clients.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found.keys() == clients.keys()
    return found


def read_to_eof(client: RawClient) -> tuple[float, bytes]:
    """Return how long it takes until the server ends TCP, and the last bytes that came."""
    begun, tail = time.monotonic(), b""
    while data := client.socket.recv(1 << 20):
        tail = (tail + data)[-200:]
    return time.monotonic() - begun, tail


def answer_to(code: int) -> bytes:
    return b"\x88\x02" + code.to_bytes(2, "big")


def close_frame(code: int) -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big"))


def check_ends(server: Server, code: int, timeout: float = PROMPT) -> None:
    """Check that all handlers learn promptly of an end, and that nothing is left behind."""
    assert untimely(server, lambda conn: conn["closed"] and conn["code"] == code, timeout) == {}
    looks = [name for name in report(server) if name.rpartition("/")[2] in LOOKING]
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not any(report(server)[name]["alive"] for name in looks), PROMPT)
    found = report(server)
    assert [name for name in looks if found[name]["alive"]] == []
    absent = len(found) - len(looks)
    stats = json.loads(server.get("/stats"))
    assert sum(one["lingering"] for one in stats) == sum(one["threads"] for one in stats) == absent
    assert server.get("/dump").count("lingering") == absent
    post(server, "/release")
    assert untimely(server, lambda conn: not conn["alive"]) == {}
    for name, conn in report(server).items():
        assert (name, conn["error"]) == (name, code)
        assert (name, conn["closes"]) == (name, [] if name.startswith("/route/") else [code])
    assert not any(one["threads"] for one in json.loads(server.get("/stats")))


@on_all
def test_close_by_one_who_keeps_tcp_open(server: Server) -> None:
    with started(server, paths()) as clients:
        def close(client: RawClient) -> float:
            client.send(close_frame(1000))
            seconds, tail = read_to_eof(client)
            assert tail.endswith(answer_to(1000))
            return seconds

        seconds = in_threads(clients, close)
        show("Close, its answer and EOF", seconds)
        assert {name: took for name, took in seconds.items() if took > PROMPT} == {}
        check_ends(server, 1000)


@on_all
def test_close_in_the_segment_of_the_message(server: Server) -> None:
    with started(server, paths(), behind=close_frame(4001)) as clients:
        seconds = in_threads(clients, lambda client: read_to_eof(client)[0])
        show("Close in the same segment, its answer and EOF", seconds)
        assert {name: took for name, took in seconds.items() if took > PROMPT} == {}
        check_ends(server, 4001)


@on_all
@pytest.mark.parametrize("how", ["fin", "reset"])
def test_end_without_a_close(server: Server, how: str) -> None:
    with started(server, paths()) as clients:
        begun = time.monotonic()
        for client in clients.values():
            if how == "fin":
                client.socket.shutdown(1)
            else:
                client.reset()
        check_ends(server, 1006)
        print(f"FIGURE {how}, all that is to be seen: {time.monotonic() - begun:.2f} s")


@on_all
def test_pings(server: Server) -> None:
    names = [name for name in paths() if not name.endswith("flood")]  # There the Pong stands in line.
    with started(server, names) as clients:
        def ping(client: RawClient) -> float:
            worst = 0.0
            for number in range(5):
                begun, payload = time.monotonic(), b"%d" % number
                client.send(frame(PING, payload))
                while client.recv_frame() != (PONG, payload):
                    pass
                worst = max(worst, time.monotonic() - begun)
            return worst

        seconds = in_threads(clients, ping)
        show("Pong", seconds)
        assert {name: took for name, took in seconds.items() if took > PROMPT} == {}


@on_all
def test_messages_and_a_close_while_the_handler_works(server: Server) -> None:
    sent = [f"message {number}" for number in range(500)]
    with started(server, paths(("collect",))) as clients:
        for client in clients.values():
            for text in sent:
                client.send(frame(TEXT, text))
            client.send(close_frame(4002))
        seconds = in_threads(clients, lambda client: read_to_eof(client)[0])
        show("Close behind 500 messages", seconds)
        assert {name: took for name, took in seconds.items() if took > PROMPT} == {}
        assert untimely(server, lambda conn: conn["closed"] and conn["code"] == 4002) == {}
        post(server, "/release")
        assert untimely(server, lambda conn: conn["received"] == sent and not conn["alive"]) == {}


# The websockets package


def in_a_loop(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def open_client(server: Server, path: str, **options: Any) -> tuple[ClientConnection, asyncio.Future[None]]:
    """Open a WebSocket and let its handler work; return it with a future, done at its end, that drops what it gets."""
    client = await connect(server.url(f"{path}?name={path}", "ws"), max_size=None, **options)
    await client.send("go")
    await client.recv()

    async def drop() -> None:
        async for _ in client:
            pass

    return client, asyncio.ensure_future(drop())


@pytest.mark.slow
@pytest.mark.parametrize("shared", [("gthread", "1"), ("gthread", "0")], indirect=True, ids="-".join)
def test_clients_with_a_keepalive(server: Server) -> None:
    """They stay as long as they like, however busy the handlers, and measure how far away the server is."""
    async def talk() -> tuple[dict[str, float], dict[str, float]]:
        names = paths(CALM + ABSENT)
        clients = {
            name: await open_client(server, name, ping_interval=1, ping_timeout=2, close_timeout=10) for name in names}
        await asyncio.sleep(4)
        assert [name for name, (client, _) in clients.items() if client.close_code is not None] == []
        latencies = {name: client.latency for name, (client, _) in clients.items()}
        assert {name: took for name, took in latencies.items() if not 0 < took < PROMPT} == {}

        async def close(name: str) -> tuple[str, float]:
            begun, (client, end) = time.monotonic(), clients[name]
            await client.close(1000)
            await end
            assert client.close_code == 1000
            return name, time.monotonic() - begun

        return latencies, dict(await asyncio.gather(*map(close, names)))

    latencies, seconds = in_a_loop(talk())
    show("latency that websockets measured in 4 s", latencies)
    show("close() of websockets", seconds)
    assert {name: took for name, took in seconds.items() if took > PROMPT} == {}
    check_ends(server, 1000)


# A script, because it gets SIGSTOP. It is one more client that answers Pings.
CLIENT = """
import asyncio, sys
from websockets.asyncio.client import connect

async def talk(url):
    async with connect(url, max_size=None, ping_interval=None) as client:
        await client.send("go")
        async for _ in client:
            pass

async def main():
    await asyncio.gather(*map(talk, sys.argv[1:]))

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "speedups"), [("gthread", "1"), ("werkzeug", "0")])
def test_clients_that_are_stopped(kind: str, speedups: str) -> None:
    """They are found by Pings: 1 s until the next one, and 1 s for its Pong."""
    with serve_app(kind, speedups, ping_interval=1, ping_timeout=1) as server:
        urls = [server.url(f"{path}?name={path}", "ws") for path in paths(CALM + ABSENT)]
        client = subprocess.Popen([sys.executable, "-c", CLIENT, *urls], stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: len(report(server)) == len(urls))
            time.sleep(2)  # Until each has had a Ping, and a quarter of a second for the look at its Pong.
            found = report(server)
            assert [name for name, conn in found.items() if not conn["connected"]] == []
            latencies = {name: conn["latency"] for name, conn in found.items() if conn["latency"] is not None}
            assert latencies.keys() == found.keys()
            show("latency that the server measured", latencies)
            client.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            check_ends(server, 1006, timeout=2 + PROMPT)
            print(f"FIGURE stopped, all that is to be seen: {time.monotonic() - begun:.2f} s")
        finally:
            client.kill()
            client.wait(10)


# Chromium

SCRIPT = """
const [names, done] = arguments;
const ends = {};
let begun = 0;
for (const name of names) {
    const ws = new WebSocket(`ws://${location.host}${name}?name=${name}`);
    let closed = 0;
    ws.onopen = () => ws.send("go");
    ws.onmessage = () => {
        if (closed) return;
        closed = 1;
        begun += 1;
        setTimeout(() => { closed = performance.now(); ws.close(1000); }, 1000);
    };
    ws.onclose = event => {
        ends[name] = [event.code, event.wasClean, (performance.now() - closed) / 1000];
        if (Object.keys(ends).length === names.length) done(ends);
    };
}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "speedups", "works"), [
    ("gthread", "1", CALM + ABSENT), ("werkzeug", "0", CALM + ABSENT), ("gthread", "1", ("flood",))])
def test_chromium(browser: Any, kind: str, speedups: str, works: tuple[str, ...]) -> None:
    with serve_app(kind, speedups) as server:
        browser.get(server.url())
        browser.set_script_timeout(30)
        ends = browser.execute_async_script(SCRIPT, paths(works))
        assert {name: end for name, end in ends.items() if end[:2] != [1000, True]} == {}
        seconds = {name: end[2] for name, end in ends.items()}
        show("onclose of Chromium", seconds)
        if works != ("flood",):  # There the Close stands behind a large message that Chromium takes its time for.
            assert {name: took for name, took in seconds.items() if took > PROMPT} == {}
        check_ends(server, 1000)


# Limits


def status_of(server: Server, path: str) -> int:
    """Return how a handshake is answered."""
    with RawClient(server.port) as client:
        client.send(handshake(f"{path}?name=last", server.port))
        return int(client.recv_head().split()[1])


@pytest.mark.parametrize(("kind", "speedups"), [
    ("gthread", "1"), slow("gthread", "0"), slow("werkzeug", "1"), slow("werkzeug", "0")])
def test_departed_clients_free_their_slots(kind: str, speedups: str) -> None:
    with serve_app(kind, speedups, max_connections=3) as server:
        def leave(path: str) -> None:
            clients = [RawClient(server.port).open(f"{path}?name={path}{number}") for number in range(3)]
            for client in clients:
                client.send(frame(TEXT, "go"))
            wait_until(lambda: sum(name.startswith(path) for name in report(server)) == 3)
            assert status_of(server, path) == 503
            clients[0].send(close_frame(1000))
            clients[1].socket.shutdown(1)
            clients[2].reset()
            for client in clients[:2]:
                with client:
                    read_to_eof(client)

        for style in STYLES:
            leave(f"/{style}/poll")
            wait_until(lambda: status_of(server, f"/{style}/poll") == 101, PROMPT)
        leave("/handler/sleep")
        wait_until(lambda: sum(one["lingering"] for one in json.loads(server.get("/stats"))) == 3, PROMPT)
        assert status_of(server, "/handler/poll") == 503  # Their threads count, ...
        assert status_of(server, "/callback/poll") == 101  # ... for their manager.
        post(server, "/release")
        wait_until(lambda: status_of(server, "/handler/poll") == 101, PROMPT)


# The end of the process


def stop(server: Server, number: int, path: str, count: int) -> tuple[float, float, set[int]]:
    """Send a signal to a server with busy handlers.

    Returns:
        How many seconds it takes until the last handler learns of it, and until the server has ended; and the close
        codes that the clients saw.
    """
    codes: list[int] = []
    ready, times = threading.Event(), []

    async def client(name: int) -> Any:
        client = await connect(server.url(f"{path}?name={name}", "ws"), ping_interval=None)
        await client.send("go")
        await client.recv()
        return client

    async def talk() -> None:
        clients = await asyncio.gather(*map(client, range(count)))
        ready.set()

        async def drop(client: Any) -> None:
            async for _ in client:
                pass
            codes.append(client.close_code)

        await asyncio.gather(*map(drop, clients))

    thread = threading.Thread(target=in_a_loop, args=(talk(),))
    thread.start()
    try:
        assert ready.wait(20)
        begun = time.monotonic()
        server.signal(number)
        wait_until(lambda: server.log().count("learned") == count)
        times.append(time.monotonic() - begun)
        server.process.wait(15)
        times.append(time.monotonic() - begun)
    finally:
        if server.process.poll() is None:
            server.process.kill()
        thread.join(20)
    return times[0], times[1], set(codes)


@pytest.mark.parametrize(("kind", "number", "speedups"), [
    ("gthread", signal.SIGTERM, "1"), slow("gthread", signal.SIGTERM, "0"), slow("werkzeug", signal.SIGINT, "1"),
])
@pytest.mark.parametrize("path", ["/callback/push", slow("/handler/poll"), slow("/route/poll")])
def test_end_of_the_process(kind: str, number: int, speedups: str, path: str) -> None:
    """Peers get their Close and handlers learn of it at once, though 100 of them are busy."""
    with serve(kind, APP, env={"WSTHREAD_SPEEDUPS": speedups}) as server:
        told, ended, codes = stop(server, number, path, 100)
        print(f"FIGURE {signal.Signals(number).name}, {path}: handlers know after {told:.2f} s, over in {ended:.2f} s")
        assert codes == {1001}
        assert told < PROMPT
        assert ended < 2
    assert server.errors() == []
