"""200 clients while the workers of gunicorn are killed, stopped, reloaded, replaced, and end after so many requests.

With the backplane of one host and with a Redis. Clients of workers that end come again, and get all from then on; the
others get everything. :mod:`listeners` has what that means.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from crowd import workers_of
from listeners import HELD_UP, WORKERS, Crowd, Load, print_times
from redis_servers import running
from servers import Server, serve, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
MESSAGES, RATE = 10_000, 110.0


class Deployment:
    """A gunicorn, and what may happen to it.

    Attributes:
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
        self.killed.append(random.choice(self.workers()))
        os.kill(self.killed[-1], signal.SIGKILL)

    def stop(self) -> None:
        pid = random.choice(self.workers())
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(pid, signal.SIGCONT)

    def reload(self) -> None:
        old = set(self.workers())
        os.kill(self.master(), signal.SIGHUP)
        wait_until(lambda: len(self.workers()) == WORKERS and old.isdisjoint(self.workers()), timeout=30)

    def let_workers_end(self) -> None:
        """For a while each ends after so many requests.

        Not for longer: what clients of one that ends ask for lets others end, and on a slow machine faster than new
        ones start.
        """
        configure(self._directory, max_requests=200, max_requests_jitter=100)
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


@pytest.mark.parametrize("bus", ["local", "redis"])
def test_workers_go_through_everything(bus: str, redis_program: str, tmp_path: Path) -> None:
    configure(tmp_path)
    options = [
        "--workers", f"{WORKERS}", "--threads", "4", "--graceful-timeout", "5", "--config", f"{tmp_path}/conf.py",
        "--pid", f"{tmp_path}/pid"]
    with running(redis_program) as redis:
        env = {"TMPDIR": str(tmp_path)}
        if bus == "redis":
            env["REDIS"] = redis.url
            options.append("--preload")
        with serve("gthread", "apps.hosts:app", *options, env=env) as server:
            wait_until(lambda: len(workers_of(server)) == WORKERS)
            deployment, crowd = Deployment(server, tmp_path), Crowd(server.port)
            load = Load(server, env.get("REDIS"), RATE)
            try:
                for event in (
                        deployment.kill, deployment.stop, deployment.reload, deployment.let_workers_end,
                        deployment.replace):
                    time.sleep(1)
                    begun = time.monotonic()
                    event()
                    time.sleep(0.5)
                    wait_until(crowd.is_complete, timeout=20)
                    print(f"{event.__name__}: {time.monotonic() - begun:.1f} s, {len(crowd.ended)} have ended")
                time.sleep(max(1.0, load.began + MESSAGES / (4 if env.get("REDIS") else 3) / RATE - time.monotonic()))
            finally:
                try:
                    sent, times = load.stop()
                    p99 = print_times(sent, times)
                    crowd.check(sent, deployment.killed if bus == "local" else ())
                finally:
                    crowd.close()
                    deployment.end()
            assert not re.search(r"Traceback|\[ERROR\] (?!Worker \(pid:\d+\) was sent SIGKILL)", server.log())
            assert sum(one.sent for one in sent.values()) > MESSAGES * 0.9 and p99 < HELD_UP
    assert [path.name for path in tmp_path.rglob("*") if path.is_socket()] == []
