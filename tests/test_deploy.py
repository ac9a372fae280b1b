"""Every way to stop a server with WebSockets: what the clients see, and how soon the process is gone.

``pytest -rP`` shows both for each case.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from clients import RawClient, handshake
from herd import Herd
from servers import Server, serve, touch, wait_until

CLIENTS = 50
#: Seconds in which the Closes are at the last client: the housekeeper looks every 0.25 s, the machine may be busy.
AT_ONCE = 1.5
#: The same when only the end of the worker tells of the stop: gunicorn's own loop looks every second.
AT_THE_END = AT_ONCE + 1
#: Seconds in which a worker is gone that nothing holds up.
SOON = 4.0


class Stopped(NamedTuple):
    """What became of a stop.

    Attributes:
        codes: how many clients saw which close code.
        first: seconds until the first client saw the end.
        last: seconds until the last one did.
        left: seconds until the process was gone.
    """

    codes: dict[int | None, int]
    first: float
    last: float
    left: float


def stop(
    server: Server, herd: Herd, act: Callable[[], object], process: int | None = None, timeout: float = 20,
) -> Stopped:
    """Stop a process and return what came of it.

    Args:
        server: the server.
        herd: its clients.
        act: stops it.
        process: its id; None for that of the newest worker.
        timeout: seconds for everything.
    """
    process = process or server.worker()
    gone: list[float] = []

    def is_over() -> bool:
        if not gone and not is_running(process):
            gone.append(time.monotonic())
        return bool(gone) and herd.ended()

    begun = time.monotonic()
    act()
    herd.wait(is_over, timeout)
    ends = [client.closed_at - begun for client in herd.clients if client.closed_at > begun]
    stopped = Stopped(dict(herd.codes()), min(ends), max(ends), gone[0] - begun)
    print(stopped)
    return stopped


def is_running(process: int) -> bool:
    """Tell whether a process exists and does not only wait for its parent to take notice of its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left_by_itself(server: Server, process: int) -> bool:
    """Tell whether a process came to its end, past the shutdown of wsthread, and nobody was impatient with it."""
    return f"{process} left\n" in server.log() and not re.search("WORKER TIMEOUT|SIGKILL|signal 9", server.log())


@contextmanager
def crowded(
    kind: str, *options: str, clients: int = CLIENTS, env: dict[str, str] | None = None, **manager: Any,
) -> Iterator[tuple[Server, Herd]]:
    """Run a server with open connections; ``manager`` are options of the manager."""
    env = {"MANAGER": json.dumps(manager), **(env or {})}
    with serve(kind, "apps.deploy:app", *options, env=env) as server:
        with Herd(server.url("/ws", "ws"), clients) as herd:
            yield server, herd


@contextmanager
def request(server: Server, path: str) -> Iterator[RawClient]:
    """Have a request in flight."""
    before = server.log().count("request begins")
    with RawClient(server.port, timeout=30) as client:
        client.send(get(path))
        wait_until(lambda: server.log().count("request begins") > before)
        yield client


def get(path: str) -> bytes:
    """Return a request."""
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def stats(server: Server) -> dict[str, Any]:
    """Return what /stats tells."""
    found: dict[str, Any] = json.loads(server.get("/stats"))
    return found


def closed(server: Server, process: int) -> Counter[str]:
    """Return the close codes that the ``on_close`` of a process got."""
    return Counter(re.findall(rf"^{process} closed (\d+)$", server.log(), re.M))


def established(process: int, port: int) -> set[str]:
    """Return a process' TCP connections on a local port."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, state, inode = fields[1], fields[3], fields[9]
        if local.endswith(f":{port:04X}") and state == "01":
            found.add(f"socket:[{inode}]")
    return open_files(process) & found


def open_files(process: int) -> set[str]:
    """Return what the file descriptors of a process are open on."""
    files = set()
    for number in os.listdir(f"/proc/{process}/fd"):
        with suppress(FileNotFoundError):  # Closed meanwhile.
            files.add(os.readlink(f"/proc/{process}/fd/{number}"))
    return files


def assert_successor_serves(server: Server, process: int) -> None:
    """Check that another process does the work of one that is gone."""
    with Herd(server.url("/ws", "ws"), 3) as herd:
        assert str(process) not in herd.ask("pid")


# gunicorn, by its signals


@pytest.mark.parametrize("number", [
    signal.SIGTERM,
    pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    pytest.param(signal.SIGQUIT, marks=pytest.mark.slow),
])
def test_signal(number: signal.Signals) -> None:
    with crowded("gthread") as (server, herd):
        worker = server.worker()
        stopped = stop(server, herd, lambda: server.signal(number))
        assert stopped.codes == {1001: CLIENTS}
        assert stopped.last < AT_THE_END
        assert stopped.left < SOON
        assert server.process.wait(5) == 0
        assert left_by_itself(server, worker)
        assert closed(server, worker) == {"1001": CLIENTS}
        assert server.errors() == []
        assert not any(client.reset for client in herd.clients)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_all_processes(number: signal.Signals) -> None:
    """As a terminal does with Ctrl-C, and systemd by default with SIGTERM."""

    def signal_all() -> None:
        os.kill(worker, number)
        # A worker whose handler is interrupted by the master's signal may wait for itself for ever (gunicorn 20.1 and
        # 27.0), which takes microseconds to be avoided and is not ours.
        time.sleep(0.05)
        server.signal(number)

    with crowded("gthread") as (server, herd):
        worker = server.worker()
        stopped = stop(server, herd, signal_all)
        assert stopped.codes == {1001: CLIENTS}
        assert stopped.last < AT_THE_END
        assert stopped.left < SOON
        assert server.process.wait(5) == 0
        assert left_by_itself(server, worker)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP])
def test_signal_while_a_request_is_in_flight(number: signal.Signals) -> None:
    with crowded("gthread") as (server, herd), request(server, "/slow?seconds=2") as slow:
        worker = server.worker()
        stopped = stop(server, herd, lambda: server.signal(number))
        assert stopped.codes == {1001: CLIENTS}
        assert stopped.last < AT_ONCE
        assert 1 < stopped.left < 2 + SOON
        assert left_by_itself(server, worker)
        if number is not signal.SIGQUIT:  # Which is for impatient people.
            assert slow.recv_response() == (200, "slept")


@pytest.mark.slow
def test_application_with_a_handler_of_its_own() -> None:
    with crowded("gthread", env={"OWN_HANDLER": "1"}) as (server, herd), request(server, "/slow?seconds=2"):
        worker = server.worker()
        stopped = stop(server, herd, lambda: server.signal(signal.SIGTERM))
        assert stopped.codes == {1001: CLIENTS}
        assert stopped.last < AT_ONCE
        assert f"{worker} terminated" in server.log()
        assert left_by_itself(server, worker)


@pytest.mark.slow
def test_reload_by_signal() -> None:
    with crowded("gthread") as (server, herd):
        worker = server.worker()
        stopped = stop(server, herd, lambda: server.signal(signal.SIGHUP))
        assert stopped.codes == {1001: CLIENTS}
        assert stopped.last < AT_THE_END
        assert stopped.left < SOON
        assert left_by_itself(server, worker)
        assert_successor_serves(server, worker)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_upgrade_of_the_master(number: signal.Signals) -> None:
    with crowded("gthread", "--config", "python:apps.reexec") as (server, herd):
        worker = server.worker()
        server.signal(signal.SIGUSR2)
        try:
            wait_until(lambda: server.log().count("Booting worker") == 2)
            stopped = stop(server, herd, lambda: server.signal(number), worker)
            assert stopped.codes == {1001: CLIENTS}
            assert stopped.last < AT_THE_END
            assert stopped.left < SOON
            assert server.process.wait(5) == 0
            assert left_by_itself(server, worker)
            assert_successor_serves(server, worker)
        finally:
            successor = int(re.findall(r"Listening at: .* \((\d+)\)", server.log())[-1])
            os.kill(successor, signal.SIGTERM)
            wait_until(lambda: not is_running(successor))


# gunicorn, by its own decision


@pytest.mark.slow
def test_max_requests() -> None:
    with crowded("gthread", "--max-requests", str(CLIENTS + 1)) as (server, herd):
        worker = server.worker()
        stopped = stop(server, herd, server.get)
        assert stopped.codes == {1001: CLIENTS}
        assert stopped.last < AT_THE_END
        assert stopped.left < SOON
        assert left_by_itself(server, worker)
        assert_successor_serves(server, worker)


@pytest.mark.slow
def test_max_requests_while_a_request_is_in_flight() -> None:
    with crowded("gthread", "--max-requests", str(CLIENTS + 1)) as (server, herd):
        worker = server.worker()
        with request(server, "/slow?seconds=2") as slow:
            stopped = stop(server, herd, lambda: None, worker)
            assert slow.recv_response() == (200, "slept")
        assert stopped.codes == {1001: CLIENTS}
        assert stopped.last < AT_ONCE
        assert 1 < stopped.left < 2 + SOON
        assert left_by_itself(server, worker)
        assert_successor_serves(server, worker)


@pytest.mark.slow
def test_max_requests_while_a_request_takes_longer_than_the_timeout() -> None:
    """With graceful_timeout > timeout, old versions of gunicorn abort the worker then."""
    options = ["--max-requests", str(CLIENTS + 1), "--timeout", "2", "--graceful-timeout", "20"]
    with crowded("gthread", *options, shutdown_code=1012) as (server, herd):
        worker = server.worker()
        with request(server, "/slow?seconds=4"):
            stopped = stop(server, herd, lambda: None, worker)
        assert stopped.codes == {1012: CLIENTS}
        assert stopped.last < AT_ONCE
        assert closed(server, worker) == {"1012": CLIENTS}
        assert_successor_serves(server, worker)


@pytest.mark.slow
def test_upgrades_go_on_through_restarts() -> None:
    with crowded("gthread", "--workers", "2", "--max-requests", "20", clients=0) as (server, herd):
        refused = 0
        for _ in range(60):
            try:
                herd.grow(1)  # Nobody is lost, neither by a reset nor by waiting for an answer.
            except ConnectionRefusedError as error:
                assert "HTTP 503" in str(error)
                refused += 1
            herd.live()
        assert refused < 6
        wait_until(lambda: server.log().count("Booting worker") >= 4)
        assert server.errors() == []
        assert set(herd.codes()) <= {1001, None}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "path"), [("sync", "/slow?seconds=60"), ("gthread", "/stall")])
def test_worker_timeout(kind: str, path: str) -> None:
    """A worker whose main thread hangs is aborted by the master; a second later it would be killed."""
    with crowded(kind, "--timeout", "2") as (server, herd), RawClient(server.port) as client:
        worker = server.worker()
        stopped = stop(server, herd, lambda: client.send(get(path)))
        assert stopped.codes == {1001: CLIENTS}
        assert 1 < stopped.last < 2 + SOON
        assert stopped.left < 3 + SOON
        assert f"WORKER TIMEOUT (pid:{worker})" in server.log()
        assert closed(server, worker) == {"1001": CLIENTS}
        assert_successor_serves(server, worker)


@pytest.mark.slow
def test_reload_of_a_touched_file(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.touch()
    options = ["--reload", "--reload-engine", "poll", "--reload-extra-file", str(watched)]
    with crowded("gthread", *options) as (server, herd):
        worker = server.worker()
        stopped = stop(server, herd, lambda: touch(watched, server, "Worker reloading"))
        assert stopped.codes == {1001: CLIENTS}
        assert left_by_itself(server, worker)
        assert_successor_serves(server, worker)


@pytest.mark.slow
def test_killed_master() -> None:
    with crowded("gthread") as (server, herd):
        worker = server.worker()
        stopped = stop(server, herd, lambda: server.signal(signal.SIGKILL))
        assert stopped.codes == {1001: CLIENTS}
        assert stopped.left < SOON
        assert left_by_itself(server, worker)


@pytest.mark.slow
def test_killed_worker() -> None:
    """There is no way to say anything after SIGKILL; what clients see is the kernel's work."""
    with crowded("gthread") as (server, herd):
        worker = server.worker()
        stopped = stop(server, herd, lambda: os.kill(worker, signal.SIGKILL))
        assert stopped.codes == {1006: CLIENTS}
        assert stopped.last < AT_ONCE
        assert_successor_serves(server, worker)


# Who may hold it up, and for how long


@pytest.mark.slow
def test_stuck_reader() -> None:
    with crowded("gthread", clients=CLIENTS - 1, shutdown_timeout=2) as (server, herd):
        with Herd(server.url("/ws", "ws"), 1, receive_buffer=4096) as stuck:
            worker = server.worker()
            assert stuck.ask("join stuck") == ["joined"]
            stuck.ignore(stuck.clients)
            while not json.loads(server.get("/broadcast?size=500000&to=stuck"))["queued"]:
                pass
            assert stats(server)["queued_bytes"] > 0
            stopped = stop(server, herd, lambda: server.signal(signal.SIGTERM))
            assert stopped.codes == {1001: CLIENTS - 1}
            assert stopped.last < AT_THE_END
            assert 1.5 < stopped.left < 2 + SOON
            assert left_by_itself(server, worker)
            assert closed(server, worker) == {"1001": CLIENTS - 1, "1006": 1}
            stuck.ignore(stuck.clients, False)
            stuck.wait(stuck.ended)
            assert stuck.codes() == {1006: 1}


@pytest.mark.slow
def test_running_handlers_may_finish() -> None:
    with crowded("gthread") as (server, herd):
        worker = server.worker()
        for client in herd.clients[::5]:
            client.send("sleep 2")
        herd.wait(lambda: server.log().count("handler begins") == CLIENTS / 5)
        stopped = stop(server, herd, lambda: server.signal(signal.SIGTERM))
        assert stopped.codes == {1001: CLIENTS}
        assert stopped.left < 2 + SOON
        assert server.log().count("handler ends") == CLIENTS / 5
        assert closed(server, worker) == {"1001": CLIENTS}
        assert left_by_itself(server, worker)


@pytest.mark.slow
@pytest.mark.parametrize(("option", "path", "number"), [
    ("--graceful-timeout=3", None, signal.SIGTERM),
    ("--graceful-timeout=6", "/slow?seconds=2", signal.SIGTERM),
    ("--timeout=3", None, signal.SIGHUP),
])
def test_endless_handler(option: str, path: str | None, number: signal.Signals) -> None:
    """Nobody waits for it longer than gunicorn waits for the worker."""
    with crowded("gthread", option) as (server, herd):
        worker = server.worker()
        herd.clients[0].send("sleep 60")
        herd.wait(lambda: "handler begins" in server.log())
        with request(server, path) if path else nullcontext():
            stopped = stop(server, herd, lambda: server.signal(number))
        assert stopped.codes == {1001: CLIENTS}
        assert stopped.last < AT_THE_END
        assert left_by_itself(server, worker)
        assert closed(server, worker) == {"1001": CLIENTS - 1}


@pytest.mark.slow
def test_handler_longer_than_the_timeout() -> None:
    """The timeout is about the worker's main thread alone."""
    with crowded("gthread", "--timeout", "2", clients=1) as (server, herd):
        herd.clients[0].send("sleep 4")
        herd.wait(lambda: herd.clients[0].messages == ["slept"])
        assert "WORKER TIMEOUT" not in server.log()


@pytest.mark.slow
def test_upgrades_are_refused_while_stopping() -> None:
    with crowded("gthread", "--threads", "1") as (server, herd), RawClient(server.port) as kept:
        kept.send(get("/"))
        assert kept.recv_response() == (200, "plain HTTP")
        with request(server, "/slow?seconds=2") as slow, RawClient(server.port) as queued:
            queued.send(handshake("/ws", server.port))  # Will be accepted, but the one thread is busy.
            wait_until(lambda: len(established(server.worker(), server.port)) == CLIENTS + 3)
            server.signal(signal.SIGTERM)
            herd.wait(herd.ended)
            assert herd.codes() == {1001: CLIENTS}
            kept.send(handshake("/ws", server.port))
            assert slow.recv_response() == (200, "slept")
            head = queued.recv_head().decode()
            assert head.startswith("HTTP/1.1 503 ")
            assert "Retry-After: " in head
            # Old versions of gunicorn do not look at kept-alive connections any more, and end them.
            with suppress(EOFError, ConnectionError):
                assert kept.recv_head().startswith(b"HTTP/1.1 503 ")
        assert server.process.wait(10) == 0
        assert server.errors() == []


# The manager's options


@pytest.mark.slow
def test_shutdown_code_and_spread() -> None:
    with crowded("gthread", shutdown_code=1012, shutdown_spread=2) as (server, herd):
        worker = server.worker()
        stopped = stop(server, herd, lambda: server.signal(signal.SIGTERM))
        assert stopped.codes == {1012: CLIENTS}
        assert 1.5 < stopped.last - stopped.first < 2 + AT_ONCE
        ends = sorted(client.closed_at for client in herd.clients)
        assert ends[CLIENTS // 2] - ends[0] > 0.7  # Half of them in about half of the time.
        assert stopped.left < 2 + SOON
        assert left_by_itself(server, worker)


# Forks


@pytest.mark.slow
def test_preload() -> None:
    """The manager is made in the master and works in each worker; what one of them broadcasts, all clients get."""
    with crowded("gthread", "--preload", "--workers", "3") as (server, herd):
        while len(set(herd.ask("pid"))) < 3:
            assert len(herd.clients) < 1000
            herd.grow(10)
        workers = Counter(herd.ask("pid"))
        told = json.loads(server.get("/broadcast?size=5"))
        assert told["sent"] == workers[str(told["pid"])]
        herd.wait(lambda: all("xxxxx" in client.messages for client in herd.clients))
        stopped = stop(server, herd, lambda: server.signal(signal.SIGTERM), server.process.pid)
        assert stopped.codes == {1001: len(herd.clients)}
        assert stopped.left < SOON
        assert server.process.wait(5) == 0
        assert all(left_by_itself(server, int(worker)) for worker in workers)
        assert {worker: closed(server, int(worker))["1001"] for worker in workers} == workers


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "foreign fork", "subprocess", "multiprocessing"])
def test_child_of_a_callback(how: str) -> None:
    """A child does not keep the connections from their ends, and holds none of them if that can be avoided."""
    with crowded("gthread") as (server, herd):
        worker = server.worker()
        assert set(herd.ask("pid")) == {str(worker)}  # All are open on the server's side too.
        first = herd.clients[0]
        first.send(f"child {how}")
        herd.wait(lambda: len(first.messages) == 2)
        child = int(first.messages[1])
        try:
            assert len(established(worker, server.port)) == CLIENTS
            if how != "foreign fork":
                wait_until(lambda: not established(child, server.port))
            if how == "fork":
                wait_until(lambda: f"{child} child of a fork with 0 connections" in server.log())
            first.close()
            herd.wait(lambda: first.ended)
            assert first.close_code == 1000
            assert not first.reset
            assert is_running(child)
        finally:
            os.kill(child, signal.SIGKILL)  # multiprocessing waits for its children at the end.
        stopped = stop(server, herd, lambda: server.signal(signal.SIGTERM))
        assert stopped.codes == {1000: 1, 1001: CLIENTS - 1}
        assert stopped.left < SOON
        assert left_by_itself(server, worker)


# Werkzeug


@pytest.mark.parametrize("options", [[], pytest.param(["--debug"], marks=pytest.mark.slow)])
def test_flask_run_ctrl_c(options: list[str]) -> None:
    with crowded("werkzeug", *options) as (server, herd):
        process = stats(server)["pid"]
        stopped = stop(server, herd, lambda: os.killpg(server.process.pid, signal.SIGINT), process)
        assert stopped.codes == {1001: CLIENTS}
        assert stopped.last < AT_ONCE
        assert stopped.left < SOON
        assert left_by_itself(server, process)
        assert server.errors() == []


@pytest.mark.slow
def test_flask_run_terminated() -> None:
    """Werkzeug leaves SIGTERM to the kernel, so there is nobody to say anything."""
    with crowded("werkzeug") as (server, herd):
        stopped = stop(server, herd, lambda: server.signal(signal.SIGTERM))
        assert stopped.codes == {1006: CLIENTS}


@pytest.mark.slow
def test_flask_run_reloads_a_touched_file(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.touch()
    with crowded("werkzeug", "--debug", "--extra-files", str(watched)) as (server, herd):
        process = stats(server)["pid"]
        assert process != server.process.pid
        stopped = stop(server, herd, lambda: touch(watched, server, "Detected change"), process)
        assert stopped.codes == {1001: CLIENTS}
        assert left_by_itself(server, process)
        wait_until(lambda: server.log().count("Debugger PIN") == 2)
        assert_successor_serves(server, process)
        assert server.errors() == []
