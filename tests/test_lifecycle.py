"""The life of a process with managers, with what a manager is to it instead of one."""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from layers import PACKAGE
from peer import TIMEOUT
from servers import wait_until

from wsthread import dump_on_signal, lifecycle


class Participant:
    """Notes what it is asked."""

    shutdown_timeout = 1.0

    def __init__(self) -> None:
        self.checked = threading.Event()

    def __str__(self) -> str:
        return "Participant"

    def check(self, now: float) -> None:
        """Note it."""
        self.checked.set()

    def begin_shutdown(self) -> float:
        """Begin at the beginning of time."""
        return 0.0

    def finish_shutdown(self, timeout: float) -> bool:
        """Take no time."""
        return True

    def reset_after_fork(self) -> None:
        """Forget nothing."""

    def dump(self) -> str:
        """Tell which it is."""
        return f"participant {id(self)}"


def test_one_housekeeper_checks_all() -> None:
    first, second = Participant(), Participant()
    housekeeper = lifecycle.enter(first, 0.05)
    assert lifecycle.enter(second, 0.05) is housekeeper
    assert lifecycle.enter(first, 0.05) is housekeeper
    assert first.checked.wait(TIMEOUT)
    assert second.checked.wait(TIMEOUT)


def test_managers() -> None:
    """Each is there once, from its first connection on, as long as somebody needs it."""
    participant = Participant()
    assert participant not in lifecycle.managers()
    for _ in range(2):
        lifecycle.enter(participant, 1.0)
    assert lifecycle.managers().count(participant) == 1
    number = id(participant)
    del participant

    def is_gone() -> bool:
        gc.collect()
        return number not in map(id, lifecycle.managers())

    wait_until(is_gone)  # The housekeeper may be looking at it.


@pytest.fixture
def number() -> Iterator[signal.Signals]:
    """Return a signal that has its old handler again after the test."""
    before = signal.getsignal(signal.SIGUSR2)
    yield signal.SIGUSR2
    signal.signal(signal.SIGUSR2, before)


def test_dump_on_signal(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    participants = [Participant(), Participant()]
    for participant in participants:
        lifecycle.enter(participant, 1.0)
    dump_on_signal(number)
    signal.raise_signal(number)
    told = {("wsthread", logging.WARNING, f"Participant: participant {id(one)}") for one in participants}
    wait_until(lambda: told <= set(caplog.record_tuples))


def test_dump_on_signal_in_another_thread(number: signal.Signals) -> None:
    errors: list[Exception] = []

    def call() -> None:
        try:
            dump_on_signal(number)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(TIMEOUT)
    assert len(errors) == 1


# What happens once in the life of a process takes a process each.


ENTERED = """
import os, sys, time
from wsthread import lifecycle

class Participant:
    def __init__(self, name, shutdown_timeout, begun):
        self.name, self.shutdown_timeout, self.begun = name, shutdown_timeout, begun
        lifecycle.follow_forks(self)
        self.housekeeper = lifecycle.enter(self, 1.0)
    def check(self, now):
        pass
    def begin_shutdown(self):
        print(self.name, "begins", flush=True)
        return time.monotonic() - self.begun
    def finish_shutdown(self, timeout):
        print(self.name, "finishes in", round(timeout, 1), flush=True)
    def reset_after_fork(self):
        print(self.name, "is reset", flush=True)
    def dump(self):
        return self.name

"""


def lines_of(source: str) -> list[str]:
    """Run a process in which participants enter, and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ENTERED + source], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_end_of_the_process() -> None:
    """All begin before anybody is waited for, and the one with the latest deadline tells how long."""
    *begun, first, second = lines_of("several = [Participant('a', 5.0, 0.0), Participant('b', 30.0, 10.0)]")
    assert sorted(begun) == ["a begins", "b begins"]
    assert sorted([first, second]) == ["a finishes in 20.0", "b finishes in 20.0"]


def test_end_of_the_process_that_begun_long_ago() -> None:
    assert lines_of("only = Participant('a', 5.0, 60.0)") == ["a begins", "a finishes in 0.0"]


def test_end_of_a_process_that_has_to_end_soon() -> None:
    """The server's limit counts."""
    assert lines_of("""
import types, signal
class Worker:
    alive, cfg = True, types.SimpleNamespace(graceful_timeout=10, timeout=30)
    def handle(self, *args):
        pass
signal.signal(signal.SIGTERM, Worker().handle)
only = Participant('a', 30.0, 0.0)
""") == ["a begins", "a finishes in 8.0"]


def test_end_of_an_empty_process() -> None:
    assert lines_of("Participant('gone', 5.0, 0.0).housekeeper; import gc; gc.collect()") == []


def test_fork() -> None:
    """The child starts empty, with a housekeeper of its own; what the parent has stays."""
    assert lines_of("""
parent = Participant('a', 5.0, 0.0)
child = os.fork()
if child == 0:
    print("another housekeeper:", lifecycle.enter(parent, 1.0) is not parent.housekeeper, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("the same housekeeper:", lifecycle.enter(parent, 1.0) is parent.housekeeper, flush=True)
""") == ["a is reset", "another housekeeper: True", "the same housekeeper: True", "a begins", "a finishes in 5.0"]


def test_fork_with_one_that_raises() -> None:
    """The others are reset nevertheless."""
    lines = lines_of("""
class Broken(Participant):
    def reset_after_fork(self):
        raise LookupError
    def begin_shutdown(self):
        return 0.0
    def finish_shutdown(self, timeout):
        pass

several = [kind(name, 5.0, 0.0) for kind, name in zip([Participant, Broken, Broken, Participant, Broken], "abcde")]
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Python tells of it there.
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
""")
    assert sorted(line for line in lines if "reset" in line) == ["a is reset", "d is reset"]


def test_fork_while_the_lock_is_held() -> None:
    """Another thread of the parent may hold it, and does not run in the child."""
    assert lines_of("""
parent = Participant('a', 5.0, 0.0)
with lifecycle._lock:
    child = os.fork()
    if child == 0:
        print(len(lifecycle.managers()), flush=True)
        os._exit(0)
os.waitpid(child, 0)
""") == ["a is reset", "1", "a begins", "a finishes in 5.0"]


def test_what_makes_a_process_slow_is_told_once() -> None:
    """Each process tells it when the first manager enters, and not when the package is imported."""
    lines = lines_of("""
import logging
from wsthread import speedups
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s: %(message).50s")

def enter(name):
    speedups.missing = "not built"
    Participant(name, 1.0, 0.0)
    while any(thread.name == "wsthread-log" for thread in threading.enumerate()):
        time.sleep(0.01)
    print(name, flush=True)

import threading
enter("first")
enter("second")
child = os.fork()
if child == 0:
    enter("of the child")
    enter("another")
    os._exit(0)
os.waitpid(child, 0)
""")
    told = "INFO wsthread: the C extension of wsthread is missing (not built)"
    assert lines == [told, "first", "second", told, "of the child", "another"]


SUBINTERPRETER = """
import time
import _xxsubinterpreters as interpreters

one = interpreters.create(isolated=False)
interpreters.run_string(one, '''
import atexit
from wsthread import SimpleManager, Upgrader, testing

manager = SimpleManager(lambda conn: [conn.send(message) for message in conn])
with testing.connect(Upgrader(manager), "/") as ws:
    ws.send("hello")
    print(ws.receive(), flush=True)
atexit._run_exitfuncs()  # As Py_EndInterpreter() does; destroy() looks for threads before that.
''')
for _ in range(500):
    try:
        interpreters.destroy(one)
        break
    except RuntimeError:  # Python itself still does away with the thread that has ended.
        time.sleep(0.01)
print("destroyed", flush=True)
"""


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="later sub-interpreters have no daemon threads")
def test_end_of_a_sub_interpreter() -> None:
    pytest.importorskip("_xxsubinterpreters")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SUBINTERPRETER], cwd=PACKAGE.parent, capture_output=True, text=True,
        timeout=60)
    assert (result.returncode, result.stdout.split(), result.stderr) == (0, ["hello", "destroyed"], "")
