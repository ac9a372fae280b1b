"""A Flask application as it is deployed: an echo, a chat, a page for probes, and what it knows of its client.

The manager's options come as JSON from the environment variable MANAGER. With PROXY_FIX=1 it believes one proxy.
"""

from __future__ import annotations

import json
import os
from typing import Any

from flask import Flask, jsonify, redirect, request
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode, Upgrader

app = Flask(__name__)
if os.environ.get("PROXY_FIX"):
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1)  # type: ignore[method-assign]
manager = ListenableManager(max_message_size=1 << 25, **json.loads(os.environ.get("MANAGER", "{}")))
upgrader = Upgrader(manager)
closing = Upgrader(ListenableManager(on_connect=lambda conn: conn.close(4000, "not you")))
picky = Upgrader(manager, subprotocols=["chat.v1"], require_subprotocol=True)


@manager.on_message
def message(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    if conn.request.path == "/chat":
        manager.broadcast(payload)
    elif payload == "who":
        conn.send_json(who_is(conn.request))
    else:
        conn.send(payload)


def who_is(asking: Any) -> dict[str, object]:
    """Return what a request tells of its client."""
    return {"scheme": asking.scheme, "address": asking.remote_addr, "pid": os.getpid()}


@app.route("/health")
def health() -> Response:
    return jsonify(who_is(request))


@app.route("/ws", websocket=True)
@app.route("/ws")
@app.route("/chat", websocket=True)
def ws() -> Response:
    return upgrader.upgrade(request)


@app.route("/closing", websocket=True)
def closing_view() -> Response:
    return closing.upgrade(request)


@app.route("/picky", websocket=True)
def picky_view() -> Response:
    return picky.upgrade(request)


@app.route("/login", websocket=True)
def login() -> Response:
    return redirect("/sign-in")


@app.route("/fails", websocket=True)
def fails() -> Response:
    raise RuntimeError("planted")


@app.route("/page", websocket=True)
def page() -> str:
    return "a page"
