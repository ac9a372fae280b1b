"""What hostile.py attacks: a page, an echo at /ws, a broadcast now and then, and numbers about both.

The manager's options come as JSON from the environment variable MANAGER.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.wrappers import Request, Response

from wsthread import Connection, ListenableManager, Opcode, Upgrader

PAUSE = 0.05  # Seconds between two broadcasts.
manager = ListenableManager(**json.loads(os.environ.get("MANAGER", "{}")))
longest = [0.0]  # Seconds that a broadcast took.


@manager.on_message
def echo(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    conn.send(payload)


def broadcast() -> None:
    """Broadcast for ever, and note how long it takes."""
    while True:
        begun = time.monotonic()
        manager.broadcast("tick")
        longest[0] = max(longest[0], time.monotonic() - begun)
        time.sleep(PAUSE)


def resident() -> int:
    """Return how many bytes of memory this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer what is no WebSocket."""
    request = Request(environ)
    match request.path:
        case "/ticks":
            threading.Thread(target=broadcast, daemon=True).start()
        case "/broadcast":  # So many, of so many bytes.
            for _ in range(int(request.args["number"])):
                manager.broadcast(bytes(int(request.args["size"])))
        case "/longest":
            seconds, longest[0] = longest[0], 0.0
            return Response(json.dumps(seconds))(environ, start_response)
        case "/trim":
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            return Response(json.dumps(resident()))(environ, start_response)
        case "/stats":
            return Response(json.dumps({**manager.stats(), "resident": resident()}))(environ, start_response)
    return Response("plain HTTP")(environ, start_response)


app = DispatcherMiddleware(page, {"/ws": Upgrader(manager)})
