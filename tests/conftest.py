"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
from collections.abc import Callable, Iterator

import pytest
from redis_servers import Listener, RedisServer, running

from wsthread.bus.redis import RedisBackplane

if os.environ.get("WITHOUT_GC"):  # As some preforking deployments run. What is only freed by it stays then.
    gc.disable()


@pytest.fixture(scope="session")
def need_program() -> Callable[[str], str]:
    """Return a function that finds a program, and skips the test where it is not installed; in CI that fails."""

    def need(name: str) -> str:
        found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")  # Not in each user's PATH.
        if found is None:
            message = f"{name} is not installed"
            if os.environ.get("CI"):
                pytest.fail(f"{message}, but CI must not skip")
            pytest.skip(message)
        return found

    return need


@pytest.fixture(scope="session")
def redis_program(need_program: Callable[[str], str]) -> str:
    """Return where redis-server is; see need_program."""
    return need_program("redis-server")


@pytest.fixture(scope="session")
def shared_redis(redis_program: str) -> Iterator[RedisServer]:
    """A Redis for tests that leave it as it is; each takes a name of its own."""
    with running(redis_program) as server:
        yield server


@pytest.fixture
def own_redis(redis_program: str) -> Iterator[RedisServer]:
    """A Redis for a test that does something to it."""
    with running(redis_program) as server:
        yield server


@pytest.fixture
def name() -> str:
    """A name for managers that no other test has."""
    return secrets.token_hex(4)


@pytest.fixture
def listening(own_redis: RedisServer, name: str) -> Iterator[Listener]:
    """What the managers of that name get over a Redis."""
    backplane, listener = RedisBackplane(own_redis.url), Listener()
    backplane.start(name, listener)
    yield listener
    backplane.close(0.5)
