"""A room for many workers, over a Redis if there is one: what one client sends, or a request asks for, all clients get.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable
from typing import Any

from werkzeug.wrappers import Request, Response

from wsthread import Connection, ListenableManager, Opcode, RedisBackplane, Upgrader

redis = os.environ.get("REDIS")
manager = ListenableManager(
    name="room", backplane="local" if redis is None else RedisBackplane(redis), ping_interval=None,
    max_outbox_size=16 << 20)
upgrader = Upgrader(manager, compression=None)
gaps: list[Any] = []
_numbers = itertools.count(1)
_order = threading.Lock()


@manager.on_connect
def greet(conn: Connection) -> None:
    """Tell which process it is."""
    conn.send(f"{os.getpid():016d}")


@manager.on_message
def pass_on(conn: Connection, opcode: Opcode, message: str | bytes) -> None:
    """Tell everybody."""
    manager.broadcast(message)


@manager.on_gap
def note_gap(gap: Any) -> None:
    """Keep what was missed."""
    gaps.append(gap)


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Serve connections at /ws, views elsewhere."""
    path = environ["PATH_INFO"]
    if path == "/ws":
        return upgrader(environ, start_response)
    if path == "/publish":
        with _order:
            text = f"v{os.getpid():07d}{next(_numbers):08d}"
            manager.broadcast(text)
        answer = text
    else:
        health = manager.stats()["backplane"]
        healthy = health is not None and health["healthy"]
        answer = f"{os.getpid()} {int(healthy)} {len(gaps)}"
    return Response(answer)(Request(environ).environ, start_response)
