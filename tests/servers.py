"""Real WSGI servers in subprocesses, on ports of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parent
READY = re.compile(r"(?:Listening at|Running on):? https?://127\.0\.0\.1:(\d+)")
TRACES = re.compile(r"Traceback|\[(?:ERROR|CRITICAL)\]|\b(?:ERROR|CRITICAL)\b|Error on request")
#: The servers that the tests run against: name and what they are started with.
SERVERS = {
    "gthread": ["gunicorn", "--worker-class", "gthread", "--threads", "2", "--access-logfile", "-"],
    "sync": ["gunicorn", "--worker-class", "sync", "--access-logfile", "-"],
    "werkzeug": ["flask", "run", "--port", "0"],
    "werkzeug-single": ["flask", "run", "--port", "0", "--without-threads"],
}


class Server:
    """A running server.

    Attributes:
        port: where it listens, on 127.0.0.1.
        process: its main process.
    """

    def __init__(self, kind: str, app: str, *options: str, env: dict[str, str] | None = None) -> None:
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        command = [sys.executable, "-m", *SERVERS[kind], *options]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(TESTS), **(env or {})}
        if command[2] == "gunicorn":
            command += ["--bind", "127.0.0.1:0", app]
        else:
            environment["FLASK_APP"] = app
        self.process = subprocess.Popen(
            command, cwd=TESTS, env=environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
            start_new_session=True)
        self.port = int(self.wait_log(READY).group(1))
        if command[2] == "gunicorn":
            self.wait_log(re.compile("Booting worker"))

    def url(self, path: str = "/", scheme: str = "http") -> str:
        """Return an absolute URL on this server."""
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def get(self, path: str = "/", timeout: float = 10) -> str:
        """Return the body of a GET."""
        with urllib.request.urlopen(self.url(path), timeout=timeout) as response:
            body: bytes = response.read()
        return body.decode()

    def log(self) -> str:
        """Return what the server has printed so far."""
        return Path(self._log.name).read_text()

    def wait_log(self, pattern: re.Pattern[str], timeout: float = 20) -> re.Match[str]:
        """Return the first match in the log, waiting for it."""
        deadline = time.monotonic() + timeout
        while True:
            found = pattern.search(self.log())
            if found:
                return found
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no {pattern.pattern!r} in the log:\n{self.log()}")
            time.sleep(0.02)

    def errors(self) -> list[str]:
        """Return the log lines that tell of an error."""
        return [line for line in self.log().splitlines() if TRACES.search(line)]

    def worker(self) -> int:
        """Return the process id of the process that serves: gunicorn's newest worker, else the server itself."""
        booted = re.findall(r"Booting worker with pid: (\d+)", self.log())
        return int(booted[-1]) if booted else self.process.pid

    def threads(self) -> int:
        """Return the number of threads of the serving process."""
        return len(os.listdir(f"/proc/{self.worker()}/task"))

    def descriptors(self) -> int:
        """Return the number of file descriptors of the serving process."""
        return len(os.listdir(f"/proc/{self.worker()}/fd"))

    def signal(self, number: int) -> None:
        """Send a signal to the main process."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it like Ctrl-C does and return its exit status."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5)
            raise


@contextmanager
def serve(kind: str, app: str, *options: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Run a server, as one of :data:`SERVERS`, for the time of a with block."""
    server = Server(kind, app, *options, env=env)
    try:
        yield server
    except BaseException:
        print(server.log())
        raise
    finally:
        server.stop()


def wait_until(condition: object, timeout: float = 10) -> None:
    """Wait until a callable returns something true."""
    assert callable(condition)
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not become true in time")
        time.sleep(0.02)
