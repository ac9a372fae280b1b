"""200 clients while the workers of gunicorn are killed, stopped, reloaded, replaced, and end after so many requests.

With the backplane of one host and with a Redis. Clients of workers that end come again, and get all from then on; the
others get everything. :mod:`listeners` has what that means.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from deployments import deploy
from listeners import HELD_UP, Crowd, Load, print_times
from redis_servers import running
from servers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
MESSAGES, RATE = 10_000, 110.0


@pytest.mark.parametrize("bus", ["local", "redis"])
def test_workers_go_through_everything(bus: str, redis_program: str, tmp_path: Path) -> None:
    with running(redis_program) as redis:
        env = {"REDIS": redis.url} if bus == "redis" else {}
        options = ["--preload"] if bus == "redis" else []
        with deploy("apps.hosts:app", tmp_path, *options, env=env) as deployment:
            server = deployment.server
            crowd = Crowd(server.port)
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
        assert not re.search(r"Traceback|\[ERROR\] (?!Worker \(pid:\d+\) was sent SIGKILL)", server.log())
        assert sum(one.sent for one in sent.values()) > MESSAGES * 0.9 and p99 < HELD_UP
    assert [path.name for path in tmp_path.rglob("*") if path.is_socket()] == []
