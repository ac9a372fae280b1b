"""A gunicorn with four workers, and what may happen to them: they are killed, stopped, reloaded, ended and replaced."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crowd import workers_of
from servers import Server, serve, wait_until

WORKERS = 4


class Deployment:
    """A gunicorn, and what may happen to it.

    Attributes:
        server: the gunicorn.
        killed: the workers that were.
    """

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.killed: list[int] = []
        self._directory = directory

    def master(self) -> int:
        """Return the process that starts workers; after replace() it is another one."""
        while True:
            with suppress(FileNotFoundError):  # At a reload it is away for a moment.
                return int((self._directory / "pid").read_text())
            time.sleep(0.01)

    def workers(self) -> list[int]:
        """Return those that there are now."""
        children = Path(f"/proc/{self.master()}/task/{self.master()}/children").read_text()
        return [int(pid) for pid in children.split()]

    def kill(self) -> None:
        """End a worker without a word."""
        self.killed.append(random.choice(self.workers()))
        os.kill(self.killed[-1], signal.SIGKILL)

    def stop(self) -> None:
        """Let a worker do nothing for three seconds."""
        pid = random.choice(self.workers())
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(pid, signal.SIGCONT)

    def reload(self) -> None:
        """Let new workers take over."""
        old = set(self.workers())
        os.kill(self.master(), signal.SIGHUP)
        wait_until(lambda: len(self.workers()) == WORKERS and old.isdisjoint(self.workers()), timeout=30)

    def let_workers_end(self, requests: int = 200) -> None:
        """For a while each ends after so many requests, or half as many more.

        Not for longer: what clients of one that ends ask for lets others end, and on a slow machine faster than new
        ones start.
        """
        configure(self._directory, max_requests=requests, max_requests_jitter=requests // 2)
        self.reload()
        old = set(self.workers())
        wait_until(lambda: old.isdisjoint(self.workers()), timeout=60)
        configure(self._directory)
        self.reload()

    def replace(self) -> None:
        """Let another master take over."""
        old = self.master()
        before = len(workers_of(self.server))
        os.kill(old, signal.SIGUSR2)
        wait_until(lambda: len(workers_of(self.server)) == before + WORKERS, timeout=30)
        time.sleep(2)  # Both serve.
        os.kill(old, signal.SIGTERM)
        self.server.process.wait(30)
        wait_until((self._directory / "pid").exists)

    def end(self) -> None:
        """End the master that has taken over; the first one is ended by who has started it."""
        if self.server.process.poll() is None:
            return
        master = self.master()
        with suppress(ProcessLookupError):
            os.kill(master, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{master}").exists(), timeout=30)


def configure(directory: Path, **settings: int) -> None:
    """Write what gunicorn reads at its start, and when it reloads."""
    (directory / "conf.py").write_text(
        "from apps.reexec import *\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))


@contextmanager
def deploy(app: str, directory: Path, *options: str, env: dict[str, str]) -> Iterator[Deployment]:
    """Run a gunicorn with four workers for the time of a with block.

    Args:
        app: ``module:attribute``, the module below tests/.
        directory: where its files may be, and those that the workers meet by.
        *options: more command line options.
        env: more environment variables.
    """
    configure(directory)
    options = (
        "--workers", f"{WORKERS}", "--threads", "4", "--graceful-timeout", "20", "--config", f"{directory}/conf.py",
        "--pid", f"{directory}/pid", *options)
    with serve("gthread", app, *options, env={"TMPDIR": str(directory), **env}) as server:
        deployment = Deployment(server, directory)
        try:
            wait_until(lambda: len(workers_of(server)) == WORKERS, timeout=30)
            yield deployment
        finally:
            deployment.end()
