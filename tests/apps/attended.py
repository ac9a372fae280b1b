"""A Flask application whose handlers work: each kind of work in each style, at ``/<style>/<work>?name=<name>``.

A message lets the work begin. ``/report`` tells what became of each connection by its name. The managers' options come
as JSON from the environment variable MANAGER.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from flask import Flask, jsonify, request
from werkzeug.wrappers import Response

from wsthread import Connection, ConnectionClosed, ListenableManager, Opcode, SimpleManager, Upgrader
from wsthread.flask import WebSockets

OPTIONS: dict[str, Any] = json.loads(os.environ.get("MANAGER", "{}"))
LARGE = b"x" * (1 << 25)

app = Flask(__name__)
app.config.update({f"WSTHREAD_{name.upper()}": value for name, value in OPTIONS.items()})
released = threading.Event()
busy = threading.Lock()  # What nobody gives back before the test wants it.
busy.acquire()


def tell(event: str) -> None:
    """Write a line to the server's log in one go."""
    os.write(1, f"{event}\n".encode())


# The work


def push(conn: Connection) -> None:
    while True:
        conn.send("tick")
        time.sleep(0.01)


def poll(conn: Connection) -> None:
    while conn.connected:
        time.sleep(0.01)


def flood(conn: Connection) -> None:
    """Be blocked in a send nearly always."""
    while True:
        conn.send(LARGE)


def sleep(conn: Connection) -> None:
    released.wait(60)


def lock(conn: Connection) -> None:
    if busy.acquire(timeout=60):
        busy.release()


def compute(conn: Connection) -> None:
    while not released.is_set():
        sum(range(100))


def collect(conn: Connection) -> None:
    """Receive when the work is done."""
    released.wait(60)
    received[conn.request.args["name"]] = messages = []
    for message in conn:
        messages.append(message)


WORKS = {work.__name__: work for work in (push, poll, flood, sleep, lock, compute, collect)}
connections: dict[str, Connection] = {}
received: dict[str, list[Any]] = {}
errors: dict[str, int | None] = {}
closes: dict[str, list[int | None]] = {}


def work(conn: Connection, kind: str) -> None:
    name = conn.request.args["name"]
    connections[name] = conn
    conn.send("begun")
    try:
        WORKS[kind](conn)
        conn.send("too late")
    except ConnectionClosed as error:
        tell("learned")
        errors[name] = error.code
        raise


def note_close(conn: Connection) -> None:
    closes.setdefault(conn.request.args["name"], []).append(conn.close_code)


# The styles


class Handler(SimpleManager):
    """A SimpleManager that tells of ends as the callback does."""

    def report_close(self, conn: Connection) -> None:
        note_close(conn)


def handle(conn: Connection) -> None:
    conn.receive()
    work(conn, conn.request.view_args["kind"])  # type: ignore[attr-defined]


callbacks = ListenableManager(on_close=note_close, **OPTIONS)
handlers = Handler(handle, **OPTIONS)
ws = WebSockets(app)


@callbacks.on_message
def message(conn: Connection, opcode: Opcode, payload: str) -> None:
    if payload == "go":
        work(conn, conn.request.view_args["kind"])  # type: ignore[attr-defined]


def view_of(upgrader: Upgrader) -> Callable[[str], Response]:
    def view(kind: str) -> Response:
        return upgrader.upgrade(request)
    return view


app.add_url_rule("/callback/<kind>", "callback", view_of(Upgrader(callbacks)), websocket=True)
app.add_url_rule("/handler/<kind>", "handler", view_of(Upgrader(handlers)), websocket=True)


@ws.route("/route/<kind>")
def route(conn: Connection, kind: str) -> None:
    conn.receive()
    work(conn, kind)


# What the tests ask


@app.route("/")
def index() -> str:
    return "<!doctype html><title>attended</title>"


@app.route("/report")
def report() -> Response:
    threads = {thread.name for thread in threading.enumerate()}
    return jsonify({
        name: {
            "connected": conn.connected, "closed": conn.closed, "code": conn.close_code, "latency": conn.latency,
            "error": errors.get(name), "closes": closes.get(name, []), "received": received.get(name),
            "alive": f"wsthread-{conn.id}" in threads,
        } for name, conn in list(connections.items())})


@app.route("/stats")
def stats() -> Response:
    return jsonify([manager.stats() for manager in (callbacks, handlers, ws.manager)])


@app.route("/dump")
def dump() -> str:
    return "\n".join(manager.dump() for manager in (callbacks, handlers, ws.manager))


@app.route("/release", methods=["POST"])
def release() -> str:
    """Let those go on that do not look at their connection."""
    released.set()
    if busy.locked():
        busy.release()
    return "released"


@app.route("/hold", methods=["POST"])
def hold() -> str:
    """Forget all connections, and make the next ones wait again."""
    released.clear()
    busy.acquire(blocking=False)
    for kept in (connections, received, errors, closes):
        kept.clear()
    return "held"
