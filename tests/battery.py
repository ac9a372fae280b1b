"""What each server has to pass, besides the tests of tests/test_servers.py; apps.echo is what it serves."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

from apps.echo import noise
from clients import BINARY, CLOSE, TEXT, RawClient, frame
from servers import Server, serve, wait_until
from test_deploy import AT_ONCE, CLIENTS, SOON, crowded, left_by_itself, stats, stop

NORMAL = frame(CLOSE, b"\x03\xe8")


def check(kind: str, *options: str, has_access_log: bool = True) -> None:
    """A large echo, HTTP beside open WebSockets, nothing left behind, and a clean log."""
    with serve(kind, "apps.echo:app", *options) as server:
        with RawClient(server.port) as client:
            message = noise(1, 4 << 20)
            client.open().send(frame(BINARY, message))
            assert client.recv_frame() == (BINARY, message)
            client.send(NORMAL)
            assert client.recv_rest() == b"\x88\x02\x03\xe8"
        before = settled(server)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(RawClient(server.port)).open() for _ in range(8)]
            begun = time.monotonic()
            assert server.get("/", timeout=5) == "plain HTTP"
            assert time.monotonic() - begun < 1
            for client in clients:
                client.send(frame(TEXT, "still here"))
                assert client.recv_frame() == (TEXT, b"still here")
        wait_until(lambda: server.stats()["open"] == 0)
        wait_until(lambda: server.descriptors() <= before)
        if has_access_log:
            wait_until(lambda: server.access("/echo", 101) == 9)
    assert server.errors() == []


def settled(server: Server) -> int:
    """Return the number of file descriptors when it does not change any more."""
    held = [server.descriptors()]
    while len(held) < 5 or held[-5:] != 5 * held[-1:]:
        time.sleep(0.05)
        held.append(server.descriptors())
    return held[-1]


def check_many(kind: str, *options: str, has_access_log: bool = True) -> None:
    """600 upgrades over 12 threads, with plain requests between them."""
    with serve(kind, "apps.echo:app", *options) as server:
        with RawClient(server.port) as client:
            client.open()
        server.get()
        before, done = settled(server), []

        def work(thread: int) -> None:
            for number in range(50):
                with RawClient(server.port, timeout=30) as client:
                    text = f"{thread} {number}"
                    client.open().send(frame(TEXT, text))
                    assert client.recv_frame() == (TEXT, text.encode())
                    client.send(NORMAL)
                    assert client.recv_rest() == b"\x88\x02\x03\xe8"
                if number % 5 == 0:
                    assert server.get(timeout=30) == "plain HTTP"
                done.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(done) == 600
        wait_until(lambda: server.stats()["open"] == 0)
        wait_until(lambda: server.descriptors() <= before)
        if has_access_log:
            wait_until(lambda: server.access("/echo", 101) == 601)
    assert server.errors() == []


def check_stop(
    kind: str, *options: str, act: Callable[[Server], object] | None = None, number: int = signal.SIGINT,
) -> None:
    """All clients get a Close with 1001, and the process ends by itself soon after.

    Args:
        kind: the server.
        *options: its command line.
        act: stops it; None to send a signal to all of its processes.
        number: that signal.
    """
    with crowded(kind, *options) as (server, herd):
        process = stats(server)["pid"]
        # A server without threads may still be at the end of this request, and take KeyboardInterrupt for its error.
        time.sleep(0.1)
        stopped = stop(
            server, herd, lambda: act(server) if act else os.killpg(server.process.pid, number), process)
        assert stopped.codes == {1001: CLIENTS}
        assert stopped.last < AT_ONCE
        assert stopped.left < SOON
        assert left_by_itself(server, process)
        assert server.errors() == []
        assert not any(client.reset for client in herd.clients)
