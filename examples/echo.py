"""An echo server: what a client sends to ``/echo`` comes back, text as text and binary as binary. Run it with

    gunicorn --worker-class gthread --threads 2 --chdir examples echo:app
"""

from __future__ import annotations

from flask import Flask, request
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode, Upgrader

app = Flask(__name__)
manager = ListenableManager(max_message_size=64 << 20)  # Conformance suites send large messages.
upgrader = Upgrader(manager)


@manager.on_message
def echo(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    conn.send(payload)


@app.route("/")
def index() -> str:
    return "A WebSocket client is wanted at /echo.\n"


# Registered without websocket=True as well: a request whose Upgrade header is missing, typically because a proxy
# dropped it, then gets the upgrader's 426 with a sentence about it instead of Flask's bare "400 Bad Request".
@app.route("/echo", websocket=True)
@app.route("/echo")
def echo_view() -> Response:
    return upgrader.upgrade(request)
