"""Members and groups; with threads, whatever order their calls come in."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from wsthread.registry import Registry


@pytest.fixture
def registry() -> Registry[str]:
    """Return a registry with the members A, B and C under a, b and c."""
    found: Registry[str] = Registry()
    for key in "abc":
        found.add(key, key.upper())
    return found


def test_members(registry: Registry[str]) -> None:
    assert registry.snapshot() == ("A", "B", "C")
    assert len(registry) == 3
    assert registry.get("b") == "B"
    registry.remove("b")
    registry.remove("b")
    assert registry.get("b") is None
    assert registry.snapshot() == ("A", "C")


def test_groups(registry: Registry[str]) -> None:
    assert registry.join("a", "red")
    assert registry.join("a", "red")
    assert registry.join("a", "blue")
    assert registry.join("c", "red")
    assert registry.groups("a") == {"red", "blue"}
    assert registry.groups("b") == frozenset()
    assert registry.snapshot(["red"]) == ("A", "C")
    assert registry.snapshot(["blue", "red"]) == ("A", "C")  # Each once.
    assert registry.snapshot(["green"]) == ()
    assert registry.snapshot([]) == ()
    registry.leave("a", "red")
    registry.leave("a", "red")
    registry.leave("a", "green")
    registry.leave("nobody", "red")
    assert registry.snapshot(["red"]) == ("C",)
    assert registry.groups("a") == {"blue"}


def test_who_is_gone_is_in_no_group(registry: Registry[str]) -> None:
    registry.join("a", "red")
    registry.join("a", "blue")
    registry.join("b", "blue")
    registry.remove("a")
    assert registry.snapshot(["red", "blue"]) == ("B",)
    assert registry.groups("a") == frozenset()
    assert not registry.join("a", "red")
    registry.leave("a", "blue")


def test_nothing_is_left_of_empty_groups(registry: Registry[str]) -> None:
    registry.join("a", "red")
    registry.join("b", "red")
    registry.leave("a", "red")
    registry.remove("b")
    registry.remove("a")
    assert registry._groups == {}
    assert registry._joined == {}


def test_the_groups_asked_for_may_come_from_a_generator_that_asks_too(registry: Registry[str]) -> None:
    registry.join("a", "red")

    def names() -> Iterator[str]:
        for member in registry.snapshot():
            registry.join(member.lower(), "seen")
            yield from sorted(registry.groups(member.lower()))

    assert registry.snapshot(names()) == ("A", "B", "C")


@pytest.mark.parametrize(("limit", "limit_per_address", "answers"), [
    (None, None, [None, None, None]),
    (2, None, [None, None, "max_connections"]),
    (None, 2, [None, None, "max_connections_per_address"]),
    (2, 2, [None, None, "max_connections"]),
])
def test_admission(limit: int | None, limit_per_address: int | None, answers: list[str | None]) -> None:
    registry: Registry[str] = Registry()
    assert [registry.admit("1.2.3.4", limit, limit_per_address) for _ in range(3)] == answers
    assert registry.admitted == answers.count(None)


def test_each_address_counts_for_itself() -> None:
    registry: Registry[str] = Registry()
    addresses = ["one", "two", "one", "one", "two", "three"]
    answers = [registry.admit(address, None, 2) for address in addresses]
    assert answers == [None, None, None, "max_connections_per_address", None, None]


def test_dismissal_makes_room() -> None:
    registry: Registry[str] = Registry()
    for _ in range(2):
        assert registry.admit("one", 2, 2) is None
    assert registry.admit("one", 2, 2) == "max_connections"
    registry.dismiss("one")
    assert registry.admit("one", 2, 2) is None
    for _ in range(2):
        registry.dismiss("one")
    assert registry.admitted == 0
    assert registry._addresses == {}


def test_addresses_are_not_kept_without_their_limit() -> None:
    registry: Registry[str] = Registry()
    registry.admit("one", 10, None)
    assert registry._addresses == {}
    registry.dismiss("one")
    assert registry._addresses == {}


def test_wait_gone() -> None:
    registry: Registry[str] = Registry()
    assert registry.wait_gone(False, 0.0)
    registry.admit("one", None, None)
    registry.admit("one", None, None)
    started = time.monotonic()
    assert not registry.wait_gone(True, 0.05)
    assert time.monotonic() - started >= 0.05
    timer = threading.Timer(0.05, registry.dismiss, ["one"])
    timer.start()
    assert registry.wait_gone(True, 10)
    timer.join()
    assert not registry.wait_gone(False, 0.0)


def test_several_may_wait_for_each_other_to_be_gone() -> None:
    registry: Registry[str] = Registry()
    for _ in range(3):
        registry.admit("one", None, None)

    def wait_and_go(rng: random.Random) -> None:
        assert registry.wait_gone(True, 10)
        registry.dismiss("one")

    run_threads(3, wait_and_go)
    assert registry.admitted == 0


def run_threads(number: int, work: Callable[[random.Random], None]) -> None:
    """Run ``work(random)`` in many threads at a time; raise what they raise."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(number)

    def run(seed: int) -> None:
        try:
            barrier.wait(10)
            work(random.Random(seed))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []


def test_threads_that_come_join_leave_and_go() -> None:
    registry: Registry[int] = Registry()
    groups = ["red", "green", "blue"]

    def work(rng: random.Random) -> None:
        for _ in range(300):
            key = str(rng.randrange(20))
            action = rng.randrange(6)
            if action == 0:
                registry.add(key, int(key))
            elif action == 1:
                registry.remove(key)
            elif action == 2:
                registry.join(key, rng.choice(groups))
            elif action == 3:
                registry.leave(key, rng.choice(groups))
            elif action == 4:
                for member in registry.snapshot(groups):
                    registry.groups(str(member))
            else:
                assert len(set(registry.snapshot())) <= 20

    run_threads(16, work)
    members = set(registry.snapshot())
    assert set(registry.snapshot(groups)) <= members
    for group in groups:
        assert all(group in registry.groups(str(member)) for member in registry.snapshot([group]))
    for member in members:
        registry.remove(str(member))
    assert (registry._groups, registry._joined) == ({}, {})


def test_admission_never_exceeds_a_limit() -> None:
    registry: Registry[str] = Registry()
    lock = threading.Lock()
    inside = {"one": 0, "two": 0}
    most = {"one": 0, "two": 0, "all": 0}

    def work(rng: random.Random) -> None:
        for _ in range(300):
            address = rng.choice(["one", "two"])
            if registry.admit(address, 5, 3) is not None:
                continue
            with lock:
                inside[address] += 1
                most[address] = max(most[address], inside[address])
                most["all"] = max(most["all"], sum(inside.values()))
            with lock:
                inside[address] -= 1
            registry.dismiss(address)

    run_threads(16, work)
    assert most["one"] <= 3
    assert most["two"] <= 3
    assert most["all"] <= 5
    assert registry.admitted == 0
    assert registry._addresses == {}
