"""Rooms whose clients come back, of one host, or over the Redis that the environment variable REDIS names.

Each process keeps as many messages as HISTORY says, and so does the Redis.
"""

from __future__ import annotations

import os

from flask import Flask, request

from wsthread import Connection, History, ListenableManager, Opcode, RedisBackplane
from wsthread.flask import WebSockets

app = Flask(__name__)
ws = WebSockets(app)
kept = int(os.environ.get("HISTORY", 1000))
redis = os.environ.get("REDIS")
manager = ListenableManager(
    name="resuming", history=History(count=kept),
    backplane="local" if redis is None else RedisBackplane(redis, stream_length=kept))
forgetful = ListenableManager(name="forgetful")
ws.mount("/ws/<room>", manager, subprotocols=["chat.v2"])
ws.mount("/forgetful/<room>", forgetful)


@manager.on_connect
@forgetful.on_connect
def join(conn: Connection) -> None:
    conn.join(conn.request.path.rpartition("/")[2])


@manager.on_message
def message(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    if isinstance(payload, str) and payload.startswith("say "):
        manager.broadcast(payload, to=payload.split()[1])
    else:
        conn.send(payload)


@app.route("/say/<room>/<text>")
def say(room: str, text: str) -> str:
    for one in manager, forgetful:
        one.broadcast(text, to=room)
    return str(os.getpid())


@app.route("/bytes/<room>")
def say_bytes(room: str) -> str:
    manager.broadcast(b"\xff\n:", to=room)
    return ""


@app.route("/close/<room>/<int:code>")
def close(room: str, code: int) -> str:
    for one in manager, forgetful:
        one.close(to=room, code=code, reason="told")
    return ""


@app.route("/pid")
def pid() -> str:
    return str(os.getpid())


@app.route("/cut")
def cut() -> str:
    for conn in (*manager.connections, *forgetful.connections):
        conn.terminate()
    return request.path
