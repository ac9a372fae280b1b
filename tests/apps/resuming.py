"""Rooms whose clients come back, for tests of wsthread.js."""

from __future__ import annotations

import os

from flask import Flask, request

from wsthread import Connection, History, ListenableManager, Opcode
from wsthread.flask import WebSockets

app = Flask(__name__)
ws = WebSockets(app)
manager = ListenableManager(name="resuming", history=History(count=int(os.environ.get("HISTORY", 1000))))
forgetful = ListenableManager(name="forgetful")
ws.mount("/ws/<room>", manager, subprotocols=["chat.v2"])
ws.mount("/forgetful/<room>", forgetful)


@manager.on_connect
@forgetful.on_connect
def join(conn: Connection) -> None:
    conn.join(conn.request.path.rpartition("/")[2])


@manager.on_message
def message(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
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


@app.route("/cut")
def cut() -> str:
    for conn in (*manager.connections, *forgetful.connections):
        conn.terminate()
    return request.path
