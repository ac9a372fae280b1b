"""The servers that are compared: how each is started, and the running process.

Each is started the way its users start it, on a port of its own, with its limit of file descriptors
raised. All of them serve ``/echo``, which sends back what comes, and ``/fanout``, which sends it to everyone who is
there. What needs something that is not installed is left out, and the reason is told.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import machine
import programs

SERVERS = Path(__file__).resolve().parent / "servers"
LOGS = programs.BUILD / "logs"
START_TIMEOUT = 30  # Seconds; the machine may be busy.
STOP_TIMEOUT = 5  # Seconds until SIGKILL.
REQUEST = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
EMPTY_CLOSE = b"\x88\x80" + bytes(4)  # Masked with zeros.

GTHREAD = [sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--workers", "1", "--log-level", "error",
           "--chdir", str(SERVERS), "--bind", "127.0.0.1:{port}"]


class LeftOut(Exception):
    """Why a server cannot take part."""


def need_modules(*names: str) -> None:
    """Raise LeftOut unless all modules are installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise LeftOut(f"the module {name} is not installed")


def need_speedups() -> None:
    """Raise LeftOut unless the C extension was built."""
    need_modules("flask", "gunicorn")
    probe = [sys.executable, "-c", "from wsthread import speedups; print(speedups.active)"]
    if subprocess.run(probe, env=_environment({}), capture_output=True, text=True).stdout.strip() != "True":
        raise LeftOut("the C extension of wsthread is not built; wsthread-pure is the same without it")


def need_gorilla() -> None:
    """Raise LeftOut unless the Go server can be compiled."""
    try:
        programs.compile_go()
    except programs.CannotCompile as error:
        raise LeftOut(str(error)) from None


@dataclass(frozen=True)
class Contestant:
    """One server.

    Attributes:
        name: on the command line and in the tables.
        command: what starts it; ``{port}`` is replaced.
        need: raises LeftOut when something is missing.
        env: more environment variables.
        threads: for each connection.
        descriptors: for each connection.
        paths: where handshakes have to succeed before anything is measured.
        tls: whether it speaks TLS, with any certificate.
    """

    name: str
    command: list[str]
    need: Callable[[], None]
    env: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    descriptors: int = 1
    paths: tuple[str, ...] = ("/echo", "/fanout")
    tls: bool = False


def _script(name: str) -> list[str]:
    return [sys.executable, str(SERVERS / name), "{port}"]


def gthread(threads: int, app: str, *options: str) -> list[str]:
    """Return the command for an application in servers/ under gunicorn."""
    return [*GTHREAD, "--threads", str(threads), *options, app]


#: flask-sock holds a thread of the pool for each connection; the pool starts them as they are needed.
ENOUGH = 10_500
FLASK_SOCK = gthread(ENOUGH, "flask_sock_app:app", "--worker-connections", str(ENOUGH))

CONTESTANTS = {one.name: one for one in (
    Contestant("wsthread", gthread(4, "wsthread_app:app"), need_speedups),
    Contestant(
        "wsthread-pure", gthread(4, "wsthread_app:app"), lambda: need_modules("flask", "gunicorn"),
        env={"WSTHREAD_SPEEDUPS": "0"}),
    Contestant(
        "wsthread-2", [*gthread(4, "wsthread_app:app"), "--workers", "2"], need_speedups),
    Contestant("flask-sock", FLASK_SOCK, lambda: need_modules("flask_sock", "gunicorn"), threads=2),
    Contestant(
        "websockets-sync", _script("websockets_sync.py"), lambda: need_modules("websockets"), threads=3,
        descriptors=4),
    Contestant("websockets-asyncio", _script("websockets_asyncio.py"), lambda: need_modules("websockets"), threads=0),
    Contestant("aiohttp", _script("aiohttp_server.py"), lambda: need_modules("aiohttp"), threads=0),
    Contestant("picows", _script("picows_server.py"), lambda: need_modules("picows"), threads=0),
    Contestant("go-gorilla", [str(programs.GORILLA), "{port}"], need_gorilla, threads=0),
    Contestant("c-threads", [str(programs.C_THREADS), "{port}"], lambda: None),
)}


class Server:
    """A running server.

    Args:
        contestant: which.
        cpu: where it is pinned; None for wherever the system likes.

    Attributes:
        port: where it listens, on 127.0.0.1.
        process: its main process.
        pids: all of its processes.
    """

    def __init__(self, contestant: Contestant, cpu: int | None) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self._log = LOGS / f"{contestant.name}.log"
        self._directory = tempfile.TemporaryDirectory(prefix="wsthread-bench-")
        # gunicorn 25 and later put a control socket there, the same one for all that run at a time.
        env = _environment({"XDG_RUNTIME_DIR": self._directory.name, **contestant.env})
        self.port = _free_port()
        self._context = ssl._create_unverified_context() if contestant.tls else None
        with self._log.open("ab") as log, machine.pinned(cpu):
            self.process = subprocess.Popen(
                [part.replace("{port}", str(self.port)) for part in contestant.command], env=env,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.pids = [self.process.pid]
        try:
            self._wait_ready(contestant.paths)
        except BaseException:
            self.stop()
            raise
        self.pids = machine.tree(self.process.pid)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _wait_ready(self, paths: tuple[str, ...]) -> None:
        """Wait until a handshake succeeds, which also brings up what starts with the first connection."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                for path in paths:
                    self._shake_hands(path)
                break
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server does not answer ({error}); see {self._log}") from error
                time.sleep(0.05)
        time.sleep(0.1)  # For what the server does after it has closed these two.

    def open(self, path: str, timeout: float = START_TIMEOUT) -> socket.socket:
        """Return a socket of which the handshake is done.

        Args:
            path: of the endpoint.
            timeout: seconds for each step, and later for each call.

        Raises:
            OSError: the server does not answer with a 101.
        """
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        try:
            if self._context is not None:
                sock = self._context.wrap_socket(sock)
            sock.sendall(REQUEST.format(path=path, port=self.port).encode())
            answer = b""
            while b"\r\n\r\n" not in answer:
                data = sock.recv(4096)
                if not data:
                    break
                answer += data
            if not answer.startswith(b"HTTP/1.1 101 "):
                raise ConnectionRefusedError(f"{path} is answered with {answer[:60]!r}")
            return sock
        except BaseException:
            sock.close()
            raise

    def _shake_hands(self, path: str) -> None:
        with self.open(path) as sock:
            sock.sendall(EMPTY_CLOSE)
            sock.settimeout(1)
            try:
                while sock.recv(4096):  # Until the server closes; not all of them do.
                    pass
            except OSError:
                pass

    def stop(self) -> None:
        """End it, at once if it does not hear."""
        self._kill(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        self._kill(signal.SIGKILL)  # Also what is left of its group.
        self.process.wait()
        self._directory.cleanup()

    def _kill(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass


def end_servers_on_sigterm() -> None:
    """Let SIGTERM unwind the stack of this process, like Ctrl-C: servers have sessions of their own and would stay."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def _environment(more: dict[str, str]) -> dict[str, str]:
    # What decides about the extension is the contestant, not who calls.
    kept = {name: value for name, value in os.environ.items() if name != "WSTHREAD_SPEEDUPS"}
    return {**kept, **more}


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port
