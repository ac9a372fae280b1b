"""wsthread under Flask, as its users write it. Run by gunicorn's gthread worker.

The environment variable MANAGER has more options for the manager of ``/fanout``, as JSON. ``/stats`` tells what became
of the broadcasts.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from typing import Any

from flask import Flask, request
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode, Upgrader

# None: how many there may be at a time is what is measured.
OPTIONS: dict[str, Any] = {"max_connections": None, "max_message_size": 64 << 20}

app = Flask(__name__)
echoes = ListenableManager(name="echo", **OPTIONS)
fanout = ListenableManager(**{"name": "fanout", **OPTIONS, **json.loads(os.environ.get("MANAGER", "{}"))})
echo_upgrader, fanout_upgrader = Upgrader(echoes), Upgrader(fanout)

outcomes: Counter[str] = Counter()  # Only the publisher's thread counts.
durations: list[float] = []
slow: list[str] = []


@echoes.on_message
def echo(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    conn.send(payload)


@fanout.on_message
def publish(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    begun = time.perf_counter()
    outcome = fanout.broadcast(payload)
    durations.append(time.perf_counter() - begun)
    outcomes.update(outcome._asdict())


@fanout.on_slow
def note_slow(conn: Connection) -> None:
    slow.append(conn.id)


@app.route("/echo", websocket=True)
def echo_view() -> Response:
    return echo_upgrader.upgrade(request)


@app.route("/fanout", websocket=True)
def fanout_view() -> Response:
    return fanout_upgrader.upgrade(request)


@app.route("/stats")
def stats() -> dict[str, Any]:
    return {
        "outcomes": dict(outcomes),
        "on_slow": len(slow),
        "broadcasts": len(durations),
        "longest_broadcast": max(durations, default=0),
        "manager": fanout.stats(),
    }


@app.route("/plain")
def plain() -> str:
    return "plain"
