"""wsthread with handlers that sleep, as one that waits for a database or a device does, and one that computes."""

from __future__ import annotations

import time

from flask import Flask, request
from werkzeug.wrappers import Response

from wsthread import Connection, SimpleManager, Upgrader

app = Flask(__name__)


def sleep(conn: Connection) -> None:
    time.sleep(3600)


def compute(conn: Connection) -> None:
    while conn.connected:
        sum(range(10_000))


sleepers = SimpleManager(sleep, max_connections=None, ping_interval=None)
upgrader = Upgrader(sleepers)
computing_upgrader = Upgrader(SimpleManager(compute))


@app.route("/sleep", websocket=True)
def sleep_view() -> Response:
    return upgrader.upgrade(request)


@app.route("/compute", websocket=True)
def compute_view() -> Response:
    return computing_upgrader.upgrade(request)


@app.route("/stats")
def stats() -> dict[str, object]:
    return sleepers.stats()
