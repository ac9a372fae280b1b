"""A Flask application for very many connections, and for broadcasts to them.

The manager's options come as JSON from the environment variable MANAGER.
"""

from __future__ import annotations

import gc
import json
import os
import threading
from typing import Any

from flask import Flask, jsonify, request
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode, Upgrader

app = Flask(__name__)
manager = ListenableManager(**json.loads(os.environ.get("MANAGER", "{}")))
upgrader = Upgrader(manager)
_lock = threading.Lock()  # Guards the one below.
counts = {"connected": 0, "closed": 0, "slow": 0}


def count(event: str) -> None:
    with _lock:
        counts[event] += 1


@manager.on_connect
def connected(conn: Connection) -> None:
    count("connected")


@manager.on_message
def message(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    conn.send(payload)


@manager.on_slow
def slow(conn: Connection) -> None:
    count("slow")


@manager.on_close
def closed(conn: Connection) -> None:
    count("closed")


@app.route("/")
def index() -> str:
    return "plain HTTP"


@app.route("/ws", websocket=True)
def ws() -> Response:
    return upgrader.upgrade(request)


@app.route("/broadcast", methods=["POST"])
def broadcast() -> Response:
    """Send the body to everyone, ``times`` times, each behind its number of 4 bytes; return the sums."""
    sums: dict[str, Any] = {}
    for number in range(int(request.args.get("times", "1"))):
        result = manager.broadcast(number.to_bytes(4, "big") + request.get_data())
        for name, value in result._asdict().items():
            sums[name] = sums.get(name, 0) + value
    return jsonify(sums)


@app.route("/objects")
def objects() -> str:
    """Tell how many objects the garbage collector knows, once it has collected."""
    gc.collect()
    return str(len(gc.get_objects()))


@app.route("/stats")
def stats() -> Response:
    return jsonify(pid=os.getpid(), callbacks=counts, **manager.stats())
