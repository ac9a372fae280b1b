"""Real Redis servers on ports of their own, and what a manager would do with what comes over them."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from servers import wait_until

from wsthread.bus.backplane import Entry, Gap


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


class RedisServer:
    """A server that can be ended and started again.

    Attributes:
        port: where it listens, on 127.0.0.1.
        process: the running server.
    """

    def __init__(
        self, program: str, *options: str, port: int | None = None, sentinel: Path | None = None,
    ) -> None:
        self.port = free_port() if port is None else port
        self.directory = Path(tempfile.mkdtemp(prefix="wsthread-redis-"))
        self._command = [
            program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", "",
            "--daemonize", "no", *options]
        if sentinel is not None:  # Its configuration.
            self._command = [program, str(sentinel), "--sentinel", "--port", str(self.port), "--bind", "127.0.0.1"]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self, *options: str) -> None:
        """Start it, with more options, and wait until it answers."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([*self._command, *options], stdout=log, stderr=subprocess.STDOUT)
        wait_until(self.answers)

    def answers(self) -> bool:
        """Tell whether it takes commands."""
        if self.process.poll() is not None:
            raise AssertionError((self.directory / "log").read_text())
        with suppress(redis.ConnectionError, redis.ResponseError, redis.exceptions.BusyLoadingError):
            self.call("PING")
            return True
        return False

    def call(self, *words: Any) -> Any:
        """Return the answer to a command."""
        with redis.Redis(port=self.port, socket_timeout=20) as client:
            return client.execute_command(*words)

    def kill(self) -> None:
        """End it as the kernel would, without a word."""
        self.process.kill()
        self.process.wait(10)

    def pause(self) -> None:
        """Let it do nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it for good."""
        self.kill()
        shutil.rmtree(self.directory)


@contextmanager
def running(program: str, *options: str, port: int | None = None) -> Iterator[RedisServer]:
    """Run a server for the time of a with block."""
    server = RedisServer(program, *options, port=port)
    try:
        yield server
    finally:
        server.close()


class Listener:
    """Notes what comes.

    Attributes:
        calls: each call, its name and its arguments.
        delivered: the entries.
        gaps: what is missing.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.delivered: list[Entry] = []
        self.gaps: list[Gap] = []
        self.on_deliver: Callable[[Entry], None] = lambda entry: None
        self._changed = threading.Condition()

    def begin(self, publisher: str, number: int) -> None:
        self._note("begin", (publisher, number))

    def recall(self) -> bytes:
        return b""

    def restore(self, memory: bytes) -> None:
        raise NotImplementedError

    def remember(self, entry: Entry) -> None:
        self._note("remember", entry)

    def deliver(self, entry: Entry) -> None:
        self.delivered.append(entry)
        self._note("deliver", entry)
        self.on_deliver(entry)

    def note_gap(self, gap: Gap) -> None:
        self.gaps.append(gap)
        self._note("gap", gap)

    def note_gone(self, publisher: str) -> None:
        self._note("gone", publisher)

    def numbers(self, publisher: str) -> list[int]:
        """Return those that were delivered of a publisher, in order."""
        return [one.number for one in list(self.delivered) if one.publisher == publisher]

    def missing(self) -> int:
        """Return how many entries it was told to be missing."""
        return sum(gap.missing or 0 for gap in self.gaps)

    def wait(self, count: int, timeout: float = 20) -> None:
        """Wait until so many were delivered or are known to be missing."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.delivered) + self.missing() >= count, timeout):
                raise AssertionError(
                    f"{len(self.delivered)} delivered, {self.missing()} missing, of {count}: {self.gaps}")

    def _note(self, name: str, what: Any) -> None:
        with self._changed:
            self.calls.append((name, what))
            self._changed.notify_all()


def steadily(publish: Callable[[], Any], rate: float, stop: threading.Event) -> int:
    """Call something at a rate, per second, until told to stop; return how often."""
    begun, done = time.monotonic(), 0
    while not stop.wait(max(0.0, begun + done / rate - time.monotonic())):
        publish()
        done += 1
    return done


class Proxy:
    """Stands in front of a server, and may hold back what goes to its replicas, as a slow network does.

    Attributes:
        port: where it listens, on 127.0.0.1.
        flows: whether replicas get what the server sends.
    """

    def __init__(self, server: RedisServer) -> None:
        self.flows = threading.Event()
        self.flows.set()
        self._target = server.port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def close(self) -> None:
        """End all connections."""
        self.flows.set()
        for one in (self._socket, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._socket, *self._open):
            one.close()

    def _run(self, function: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=function, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()
                    continue
                self._open += (near, far)
                is_replica = threading.Event()
                self._run(self._forward, near, far, is_replica, False)
                self._run(self._forward, far, near, is_replica, True)

    def _forward(self, near: socket.socket, far: socket.socket, is_replica: threading.Event, is_back: bool) -> None:
        with suppress(OSError):
            while data := near.recv(1 << 16):
                if not is_back and b"PSYNC" in data.upper():
                    is_replica.set()
                if is_back and is_replica.is_set():
                    self.flows.wait()
                far.sendall(data)
        for one in (near, far):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
