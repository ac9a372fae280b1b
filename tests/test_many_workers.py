"""Many workers of gunicorn are one room, without a configuration: what reaches whom, and what happens when some end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from crowd import Client, close_all, pump, spread, workers_of
from servers import Server, serve, wait_until

WORKERS = 4
ALONE = "reach the clients of this process only"


@contextmanager
def served(directory: Path, *options: str, workers: int = WORKERS, **env: Any) -> Iterator[Server]:
    """Serve the application with many workers, whose bus is in a directory."""
    with serve(
        "gthread", "apps.many_workers:app", "--workers", str(workers), "--threads", "8", "--graceful-timeout", "10",
        *options, env={"TMPDIR": str(directory), **{key: str(value) for key, value in env.items()}},
    ) as server:
        wait_until(lambda: len(workers_of(server)) >= workers)
        try:
            yield server
        finally:
            close_all()


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the sockets of the bus are; none of them outlives a test."""
    directory = tmp_path_factory.mktemp("bus")
    yield directory
    assert sockets(directory) == []


def sockets(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_socket())


def pids(clients: Sequence[Client]) -> list[int]:
    return sorted({client.pid for client in clients})


def one_of_each(clients: Sequence[Client]) -> list[Client]:
    return list({client.pid: client for client in clients}.values())


def join_all(clients: Sequence[Client], begin: int = 0) -> list[str]:
    names = [f"member {number:03}" for number in range(begin, begin + len(clients))]
    for client, name in zip(clients, names):
        assert client.ask(f"join {name}") == "joined"
    return names


def wait_members(clients: Sequence[Client], names: Sequence[str], timeout: float = 5) -> None:
    """Wait until all workers know the same members."""
    for client in one_of_each(clients):
        wait_until(lambda: sorted(client.ask_json("members")) == sorted(names), timeout)


def all_have(clients: Sequence[Client], count: int) -> Callable[[], bool]:
    return lambda: all(len(client.messages) >= count for client in clients)


def check_exact(clients: Sequence[Client], expected: Sequence[str]) -> None:
    """Each has each message once, those of each sender in their order; they begin with the sender's name."""
    for client in clients:
        assert sorted(client.messages, key=lambda message: message.partition(" ")[0]) == list(expected)


def say_to_all(clients: Sequence[Client], senders: Sequence[Client], label: str) -> None:
    """Let some say something, and all hear all of it, once."""
    before = [len(client.messages) for client in clients]
    for number, sender in enumerate(senders):
        sender.send(f"say {label} {number}")
    expected = sorted(f"{label} {number}" for number in range(len(senders)))
    pump(clients, lambda: all(
        len(client.messages) - old >= len(senders) for client, old in zip(clients, before)))
    for client, old in zip(clients, before):
        assert sorted(client.messages[old:]) == expected


def check_quiet(server: Server) -> None:
    """Nothing in the log tells of an error."""
    assert server.errors() == [] and "WARNING" not in server.log()


# What reaches whom


@pytest.mark.slow
def test_everything_reaches_everyone_once_in_order(directory: Path) -> None:
    """200 clients, 10,000 messages: 8 connections and a view of any worker send them at the same time."""
    with served(directory) as server:
        clients = spread(server, 50, WORKERS)
        senders = [client for one in pids(clients) for client in [c for c in clients if c.pid == one][:2]]
        for number, sender in enumerate(senders):
            sender.send(f"burst s{number} 1125")
        server.get("/burst?sender=view&count=1000")
        pump(clients, all_have(clients, 10_000), 60)
        names = [f"s{number}" for number in range(8)]
        check_exact(clients, [
            f"{name} {number:05}" for name in names for number in range(1125)] + [
            f"view {number:05}" for number in range(1000)])
        latencies = []
        for number in range(400):
            sender = senders[number % len(senders)]
            sender.messages.clear()
            begun = time.perf_counter()
            sender.send(f"say later {number}")
            pump([sender], lambda: f"later {number}" in sender.messages)
            latencies.append(time.perf_counter() - begun)
        p50, p99 = (sorted(latencies)[int(share * len(latencies))] for share in (0.5, 0.99))
        print(f"local delivery to 200 clients: p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms")
        assert p99 < 0.05
        stats = [client.ask_json("stats") for client in one_of_each(clients)]
        assert all(one["healthy"] and one["peers"] == 3 and one["gaps"] == 0 for one in stats)
        assert sum(one["received"] for one in stats) >= 3 * 10_400
        check_quiet(server)


def test_everything_reaches_everyone(directory: Path) -> None:
    with served(directory) as server:
        clients = spread(server, 3, WORKERS)
        for number, sender in enumerate(one_of_each(clients)):
            sender.send(f"burst s{number} 50")
        server.get("/burst?sender=view&count=50")
        pump(clients, all_have(clients, 250))
        names = ("s0", "s1", "s2", "s3", "view")
        check_exact(clients, [f"{name} {number:05}" for name in names for number in range(50)])
        check_quiet(server)


def test_without_a_backplane_most_is_lost(directory: Path) -> None:
    """The control: each hears its own worker only."""
    with served(directory, MANAGER=json.dumps({"backplane": None})) as server:
        clients = spread(server, 3, WORKERS)
        for number, sender in enumerate(one_of_each(clients)):
            sender.send(f"say s{number}")
        pump(clients, all_have(clients, 1))
        assert [len(client.messages) for client in clients] == [1] * len(clients)
        assert len({(client.pid, *client.messages) for client in clients}) == WORKERS
        assert clients[0].ask_json("stats").get("healthy") is None


def test_a_view_reaches_all_from_a_worker_without_clients(directory: Path) -> None:
    with served(directory) as server:
        clients = spread(server, 2, 2)
        said = 0
        without: set[int] = set()
        while len(without) < 2:
            answer = json.loads(server.get(f"/say?text={said}"))
            said += 1
            if not answer["connections"]:
                without.add(answer["pid"])
            assert said < 500
        pump(clients, all_have(clients, said))
        for client in clients:
            assert sorted(map(int, client.messages)) == list(range(said))


@pytest.mark.slow
def test_close_and_notify_reach_all_workers(directory: Path) -> None:
    with served(directory) as server:
        clients, others = spread(server, 2, WORKERS), spread(server, 1, WORKERS)
        join_all(clients)
        server.get("/notify?data=hello")
        for client in others:
            wait_until(lambda: client.ask_json("noticed") == ["hello"])
        assert json.loads(server.get("/close?to=room"))["closed"] == 2
        pump(clients, lambda: all(client.code is not None for client in clients))
        assert [client.code for client in clients] == [4401] * len(clients)
        assert [client.code for client in others] == [None] * len(others)
        wait_members(others, [])


@pytest.mark.slow
def test_an_idle_worker_pays_one_thread_and_no_cpu(directory: Path) -> None:
    with served(directory) as server:
        client, *_ = clients = spread(server, 1, WORKERS)
        wait_until(lambda: client.ask_json("stats")["peers"] == WORKERS - 1)
        before = client.ask_json("stats")
        time.sleep(2)
        after = client.ask_json("stats")
        print(f"an idle worker: {after['cpu'] - before['cpu']:.4f} s CPU in 2 s, {after['threads']}")
        assert after["cpu"] - before["cpu"] < 0.05
        assert [name for name in after["threads"] if "bus" in name or "errands" in name] == ["wsthread-bus"]
        assert len(sockets(directory)) == WORKERS
        assert {one.ask_json("stats")["name"] for one in clients} == {"default"}


# Workers that end, stop, and begin


class Talk:
    """Somebody who says something again and again, while something happens."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self.clients = clients
        self.said = 0

    def go_on(self, seconds: float) -> None:
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            self.clients[self.said % len(self.clients)].send(f"say talk {self.said:05}")
            self.said += 1
            until = time.monotonic() + 0.02
            pump(self.clients, lambda: time.monotonic() > until)

    def check(self) -> None:
        pump(self.clients, all_have(self.clients, self.said))
        for client in self.clients:
            assert sorted(client.messages) == [f"talk {number:05}" for number in range(self.said)]
            for pid in range(len(self.clients)):  # Who said what, in their order.
                own = [one for one in client.messages if int(one[-5:]) % len(self.clients) == pid]
                assert own == sorted(own)


@pytest.mark.parametrize("options", [
    pytest.param((), id="plain"), pytest.param(("--preload",), id="preload", marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_takes_nothing_with_it(directory: Path, options: tuple[str, ...]) -> None:
    with served(directory, *options) as server:
        clients = spread(server, 4, WORKERS)
        names = join_all(clients)
        victim = clients[0].pid
        left = [client for client in clients if client.pid != victim]
        talk = Talk(left)
        talk.go_on(0.3)
        os.kill(victim, signal.SIGKILL)
        stayed = [name for name, client in zip(names, clients) if client.pid != victim]
        wait_members(left, stayed, timeout=1)
        wait_until(lambda: not any(name.startswith(f"{victim}-") for name in sockets(directory)), 1)
        talk.go_on(0.3)
        talk.check()
        wait_until(lambda: len(workers_of(server)) == WORKERS + 1)
        clients = left + spread(server, 4, 1, without=pids(left))
        say_to_all(clients, one_of_each(clients), "again")
        assert len(pids(clients)) == WORKERS
        wait_members(clients, stayed + join_all(clients[-4:], begin=100))


@pytest.mark.slow
def test_a_worker_that_is_stopped_holds_nobody_up_and_misses_nothing(directory: Path) -> None:
    with served(directory) as server:
        clients = spread(server, 4, WORKERS)
        names = join_all(clients)
        stopped = clients[0].pid
        others = [client for client in clients if client.pid != stopped]
        os.kill(stopped, signal.SIGSTOP)
        talk = Talk(others)
        talk.go_on(3)
        talk.check()
        assert not any(client.messages for client in clients if client.pid == stopped)
        os.kill(stopped, signal.SIGCONT)
        talk.clients = [*others, *(client for client in clients if client.pid == stopped)]
        pump(talk.clients, all_have(talk.clients, talk.said))
        for client in talk.clients:
            assert sorted(client.messages) == [f"talk {number:05}" for number in range(talk.said)]
        wait_members(clients, names)
        check_quiet(server)


@pytest.mark.slow
def test_a_reload_brings_all_back_into_one_room(directory: Path) -> None:
    with served(directory) as server:
        clients = spread(server, 3, WORKERS)
        join_all(clients)
        old = pids(clients)
        server.signal(signal.SIGHUP)
        pump(clients, lambda: all(client.code is not None for client in clients))
        assert {client.code for client in clients} == {1001}
        wait_until(lambda: len(workers_of(server)) == 2 * WORKERS)
        clients = spread(server, 3, WORKERS, without=old)
        names = join_all(clients, begin=50)
        wait_members(clients, names)
        say_to_all(clients, clients, "again")
        wait_until(lambda: len(sockets(directory)) == WORKERS)
        check_quiet(server)


@pytest.mark.slow
def test_twelve_workers_at_once(directory: Path) -> None:
    with served(directory, workers=12) as server:
        clients = spread(server, 1, 12)
        names = join_all(clients)
        wait_members(clients, names)
        say_to_all(clients, clients, "all")
        assert [client.ask_json("stats")["peers"] for client in clients] == [11] * 12
        check_quiet(server)


@pytest.mark.slow
def test_ten_times_from_start_to_stop(directory: Path) -> None:
    for _ in range(10):
        with served(directory, workers=2) as server:
            for number in range(4):
                server.get(f"/say?text={number}")
            assert sockets(directory)
        assert sockets(directory) == []
        assert server.errors() == []


# Where the workers cannot meet


def as_a_link(path: Path) -> None:
    path.symlink_to(path.parent)


def as_another_users(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a directory to another user")
    path.mkdir(0o700)
    os.chown(path, 12345, 12345)


def for_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def as_a_file(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize("spoil", [as_a_link, as_another_users, for_all, as_a_file, None])
def test_a_directory_that_cannot_be_trusted(directory: Path, spoil: Callable[[Path], None] | None) -> None:
    """One WARNING of each worker, which serves on, alone."""
    if spoil is None:
        directory = directory / ("long" * 20)
        directory.mkdir()
    else:
        spoil(directory / f"wsthread-{os.geteuid()}")
    with served(directory, workers=2) as server:
        clients = spread(server, 2, 2)
        say_to_all(clients[:1], clients[:1], "alone")
        for one in clients:
            assert one.ask_json("stats").get("healthy") is None
        wait_until(lambda: server.log().count(ALONE) == 2)
        assert server.errors() == []


# Who is not in the room


def test_two_applications_are_two_rooms(directory: Path) -> None:
    with served(directory, workers=2) as one, served(directory, workers=2) as another:
        ours, theirs = spread(one, 2, 2), spread(another, 2, 2)
        names, others = join_all(ours), join_all(theirs, begin=50)
        say_to_all(ours, ours, "ours")
        say_to_all(theirs, theirs, "theirs")
        wait_members(ours, names)
        wait_members(theirs, others)
        pump(ours + theirs, lambda: True)
        assert {message.split()[0] for client in ours for message in client.messages} == {"ours"}
        assert {message.split()[0] for client in theirs for message in client.messages} == {"theirs"}


def test_a_second_manager_without_a_name_stays_alone(directory: Path) -> None:
    with served(directory, workers=2) as server:
        ours, others = spread(server, 2, 2), spread(server, 2, 2, "/another")
        say_to_all(ours, ours, "ours")
        others[0].send("say others")
        own = [client for client in others if client.pid == others[0].pid]
        pump(others, all_have(own, 1))
        assert [client.messages for client in others if client not in own] == [[], []]
        assert all("others" not in client.messages for client in ours)
        assert server.log().count("it is the second manager without a name") == 2


def test_managers_with_names_share_the_bus_and_no_messages(directory: Path) -> None:
    with served(directory, workers=2, ANOTHER="news") as server:
        ours, others, routes = (spread_by(server, path) for path in ("/ws", "/another", "/route"))
        for crowd, label in ((ours, "ours"), (others, "others"), (routes, "routes")):
            say_to_all(crowd, crowd, label)
        for crowd, label in ((ours, "ours"), (others, "others"), (routes, "routes")):
            assert {message.split()[0] for client in crowd for message in client.messages} == {label}
        assert {client.ask("name") for client in routes} == {"Flask apps.many_workers"}
        assert len(sockets(directory)) == 2
        assert [name for name in ours[0].ask_json("stats")["threads"] if "bus" in name] == ["wsthread-bus"]
        check_quiet(server)


def spread_by(server: Server, path: str) -> list[Client]:
    return spread(server, 2, 2, path)
