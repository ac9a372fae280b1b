"""An echo with small limits, for peers that mean harm."""

from __future__ import annotations

from flask import Flask, jsonify, request
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode, Upgrader

app = Flask(__name__)
manager = ListenableManager(max_message_size=1 << 20, close_timeout=2, read_timeout=3)
upgrader = Upgrader(manager)
closes: list[tuple[str, int | None]] = []


@manager.on_message
def echo(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    conn.send(payload)


@manager.on_close
def note(conn: Connection) -> None:
    closes.append((conn.request.args.get("name", ""), conn.close_code))


@app.route("/ws", websocket=True)
def ws() -> Response:
    return upgrader.upgrade(request)


@app.route("/closes")
def show_closes() -> Response:
    return jsonify(closes)
