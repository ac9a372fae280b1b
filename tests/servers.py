"""Real WSGI servers in subprocesses, on ports of their own; and one in this process.

Nothing here, and nothing in the tests that use it, depends on the wording of one server's log beyond what
:data:`READY` and :data:`TRACES` tell: ``make matrix`` runs the tests on many versions.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from certificates import certificates, client_context
from clients import SECURE_PORTS
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

from wsthread import Manager, Upgrader

TESTS = Path(__file__).parent
READY = re.compile(r"(?:Listening at|Running on|Serving on):? (?:https?://127\.0\.0\.1:(\d+)|unix:)")
TRACES = re.compile(r"Traceback|\[(?:ERROR|CRITICAL)\]|\b(?:ERROR|CRITICAL)\b|Error on request")
# Its SIGTERM means a reload otherwise.
UWSGI = [
    "--master", "--processes", "1", "--threads", "2", "--enable-threads", "--need-app", "--die-on-term", "--module"]
SPAWNED = re.compile(r"(?:Booting worker with pid: |spawned uWSGI worker \d+ \(pid: )(\d+)")
#: The servers that the tests run against: name and what they are started with.
SERVERS = {
    "gthread": ["gunicorn", "--worker-class", "gthread", "--threads", "2", "--access-logfile", "-"],
    "sync": ["gunicorn", "--worker-class", "sync", "--access-logfile", "-"],
    "werkzeug": ["flask", "run", "--port", "0"],
    "werkzeug-single": ["flask", "run", "--port", "0", "--without-threads"],
    "gthread-tls": [
        "gunicorn", "--worker-class", "gthread", "--threads", "2", "--access-logfile", "-", "--certfile", "{cert}",
        "--keyfile", "{key}"],
    "werkzeug-tls": ["flask", "run", "--port", "0", "--cert", "{cert}", "--key", "{key}"],
    # Werkzeug's server for what is no Flask application, which flask run does not take.
    "run_simple": ["apps.run_simple"],
    "wsgiref": ["apps.run_wsgiref"],
    "waitress": ["waitress", "--listen", "127.0.0.1:0"],
    # These do not tell which port they have chosen, so one is chosen for them.
    "runserver": ["django", "runserver", "--settings", "apps.runserver_settings", "--noreload", "127.0.0.1:{port}"],
    "runserver-single": [
        "django", "runserver", "--settings", "apps.runserver_settings", "--noreload", "--nothreading",
        "127.0.0.1:{port}"],
    "runserver-reload": ["django", "runserver", "--settings", "apps.runserver_settings", "127.0.0.1:{port}"],
    "bottle": ["apps.run_bottle", "{port}"],
    "cheroot": ["cheroot", "--bind", "127.0.0.1:{port}"],
    "uwsgi": ["uwsgi", "--http-socket", "127.0.0.1:{port}", *UWSGI],
    "uwsgi-router": ["uwsgi", "--http", "127.0.0.1:{port}", "--http-websockets", *UWSGI],
    "uwsgi-socket": ["uwsgi", "--socket", "127.0.0.1:{port}", *UWSGI],
}


class Server:
    """A running server.

    Attributes:
        kind: a key of :data:`SERVERS`.
        port: where it listens, on 127.0.0.1; 0 when it listens on a Unix socket.
        process: its main process.
        is_secure: whether it speaks TLS.
        takes_upgrade: whether it lets applications send the header Upgrade.
        has_access_log: whether it writes one.
        ends_with_notice: whether it always says in the response that it is going to close the connection.
    """

    def __init__(
        self, kind: str, app: str, *options: str, env: dict[str, str] | None = None, bind: str = "127.0.0.1:0",
    ) -> None:
        self.kind = kind
        # wsgiref and waitress hold applications to PEP 3333, which forbids it.
        self.takes_upgrade = kind.partition("-")[0] not in ("wsgiref", "bottle", "runserver", "waitress")
        self.has_access_log = kind not in ("waitress", "cheroot")
        self.ends_with_notice = kind not in ("runserver", "cheroot")
        self._has_master = SERVERS[kind][0] == "gunicorn"
        self._directory = tempfile.TemporaryDirectory(prefix="wsthread-test-")
        self._log = Path(self._directory.name, "log")
        self._ended: str | None = None  # The log, once the server and its directory are gone.
        port = free_port() if any("{port}" in part for part in SERVERS[kind]) else 0
        self.is_secure = kind.endswith("-tls")
        paths = certificates() if self.is_secure else None
        parts = [
            part.format(port=port, cert=paths and paths.server, key=paths and paths.server_key)
            for part in SERVERS[kind]]
        if parts[0] == "uwsgi":
            command = [str(Path(sys.executable).with_name("uwsgi")), *options, *parts[1:]]
        else:
            command = [sys.executable, "-m", *parts, *options]
        # gunicorn 25 and later put a control socket into XDG_RUNTIME_DIR, the same one for all that run at a time.
        environment = {
            **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(TESTS), "XDG_RUNTIME_DIR": self._directory.name,
            **(env or {})}
        if parts[0] == "flask":
            environment["FLASK_APP"] = app
        elif parts[0] == "django":
            environment["WSGI_APPLICATION"] = app.replace(":", ".")
        elif self._has_master:
            command += ["--bind", bind, app]
        else:
            command.append(app)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=TESTS, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True)
        try:
            self.port = port or int(self.wait_log(READY).group(1) or 0)
            if self.is_secure:
                SECURE_PORTS[self.port] = client_context()
            if port:
                wait_until(self.listens, 20)
            if self._has_master:
                self.wait_log(re.compile("Booting worker"))
        except BaseException:
            self.stop()
            raise

    def listens(self) -> bool:
        """Tell whether it can be connected to."""
        assert self.process.poll() is None, self.log()
        if self.kind.startswith("uwsgi") and not SPAWNED.search(self.log()):
            return False
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
            return True
        return False

    def stats(self) -> dict[str, Any]:
        """Return what /stats of apps.echo tells."""
        found: dict[str, Any] = json.loads(self.get("/stats"))
        return found

    def url(self, path: str = "/", scheme: str = "http") -> str:
        """Return an absolute URL on this server; with TLS the scheme gets an s."""
        if self.is_secure:
            scheme += "s"
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def get(self, path: str = "/", timeout: float = 10) -> str:
        """Return the body of a GET."""
        with urllib.request.urlopen(self.url(path), timeout=timeout, context=SECURE_PORTS.get(self.port)) as response:
            body: bytes = response.read()
        return body.decode()

    def http(self, timeout: float = 10) -> http.client.HTTPConnection:
        """Return a connection for HTTP."""
        if self.is_secure:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=client_context())
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def log(self) -> str:
        """Return what the server has printed so far; its last lines may still be on their way."""
        return self._log.read_text(errors="replace") if self._ended is None else self._ended

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

    def access(self, path: str, status: int, method: str = "GET") -> int:
        """Return how many lines the access log has for a path without its query string and a status."""
        # Werkzeug puts the request line between escape sequences for colors.
        line = rf'"(?:\x1b\[\d+m)*{method} {re.escape(path)}(?:\?\S*)? HTTP/1\.[01](?:\x1b\[0m)?" {status} '
        return len(re.findall(line, self.log()))

    def worker(self) -> int:
        """Return the process id of the process that serves: the newest worker, else the server itself."""
        booted = SPAWNED.findall(self.log())
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
        """End it and return its exit status."""
        if self.process.poll() is None:
            # Not SIGINT for gunicorn: a gthread worker that gets it (or the SIGQUIT that the master makes of it) while
            # its main thread starts a thread of the pool waits for itself (seen in 27.0), until the master kills it.
            os.killpg(self.process.pid, signal.SIGTERM if self._has_master else signal.SIGINT)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            print(self.log())
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5)
            raise
        finally:
            SECURE_PORTS.pop(getattr(self, "port", 0), None)
            self._ended = self.log()
            self._directory.cleanup()


@contextmanager
def serve(
    kind: str, app: str, *options: str, env: dict[str, str] | None = None, bind: str = "127.0.0.1:0",
) -> Iterator[Server]:
    """Run a server, as one of :data:`SERVERS`, for the time of a with block.

    Args:
        kind: a key of :data:`SERVERS`.
        app: ``module:attribute``, the module below tests/.
        *options: more command line options.
        env: more environment variables.
        bind: gunicorn only: where to listen, ``unix:<path>`` for a Unix socket.
    """
    server = Server(kind, app, *options, env=env, bind=bind)
    try:
        yield server
    except BaseException:
        print(server.log())
        raise
    finally:
        server.stop()


@contextmanager
def serve_here(manager: Manager, *, send_buffer: int | None = None, **options: Any) -> Iterator[int]:
    """Serve a manager at /ws over TCP in this process, for the time of a with block; give the port.

    Args:
        manager: the manager.
        send_buffer: bytes the kernel may hold for each peer, None for its own choice.
        **options: those of the Upgrader.
    """
    application = DispatcherMiddleware(Response("plain HTTP"), {"/ws": Upgrader(manager, **options)})
    server = make_server("127.0.0.1", 0, application, threaded=True)
    if send_buffer is not None:  # What is accepted inherits it.
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def wait_until(condition: Callable[[], object], timeout: float = 10) -> None:
    """Wait until a callable returns something true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not become true in time")
        time.sleep(0.02)


def touch(path: Path, server: Server, reaction: str) -> None:
    """Touch a file until the server reacts: it may not have had its first look at it."""
    for newer in range(10, 110, 10):
        os.utime(path, (time.time() + newer, time.time() + newer))
        with suppress(AssertionError):
            return wait_until(lambda: reaction in server.log(), timeout=1.5)
    raise AssertionError("nobody reacts to touched files")
