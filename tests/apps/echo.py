"""A Flask application with an echo in both styles, and a look at what its process holds."""

from __future__ import annotations

import gc
import threading

from flask import Flask, jsonify, request
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode, SimpleManager, Upgrader

app = Flask(__name__)
manager = ListenableManager(max_message_size=1 << 27, close_timeout=5)
closed: list[tuple[int | None, str | None]] = []
connected = 0


@manager.on_connect
def count(conn: Connection) -> None:
    global connected
    connected += 1


@manager.on_message
def echo(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    conn.send(payload)


@manager.on_close
def note(conn: Connection) -> None:
    closed.append((conn.close_code, conn.close_reason))


def echo_loop(conn: Connection) -> None:
    for message in conn:
        conn.send(message)


upgrader = Upgrader(manager, subprotocols=["v2", "v1"])
simple = Upgrader(SimpleManager(echo_loop, max_message_size=1 << 27))


@app.route("/")
def index() -> str:
    return "plain HTTP"


@app.route("/echo", websocket=True)
@app.route("/echo")
def echo_view() -> Response:
    return upgrader.upgrade(request)


@app.route("/simple", websocket=True)
def simple_view() -> Response:
    return simple.upgrade(request)


@app.route("/stats")
def stats() -> Response:
    """Tell what the tests compare, the connection counter of gunicorn's gthread worker included."""
    workers = [found for found in gc.get_objects() if type(found).__name__ == "ThreadWorker"]
    return jsonify(
        connected=connected,
        closed=closed,
        open=len(manager.connections),
        threads=threading.active_count(),
        nr_conns=workers[0].nr_conns if workers else None,
    )
