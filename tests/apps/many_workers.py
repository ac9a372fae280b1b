"""What many workers serve: connections that broadcast, and views that do; each answer tells the worker's process.

The manager's options come as JSON from the environment variable MANAGER. A message is a command and its argument; what
begins with ``=`` answers a command, all else was broadcast.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

from flask import Flask, jsonify, request
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode, Upgrader
from wsthread.flask import WebSockets

app = Flask(__name__)
options: dict[str, Any] = json.loads(os.environ.get("MANAGER", "{}"))
manager = ListenableManager(**options)
upgrader = Upgrader(manager)
another = ListenableManager(name=os.environ.get("ANOTHER"))
another_upgrader = Upgrader(another)
ws = WebSockets(app)
noticed: list[Any] = []


@manager.on_notify
def notice(data: Any) -> None:
    noticed.append(data)


@manager.on_message
def message(conn: Connection, opcode: Opcode, payload: str) -> None:
    """Do what the message says."""
    command, _, argument = payload.partition(" ")
    if command == "say":
        manager.broadcast(argument)
    elif command == "burst":
        sender, count = argument.split()
        for number in range(int(count)):
            manager.broadcast(f"{sender} {number:05}")
    elif command == "pid":
        conn.send(f"={os.getpid()}")
    elif command == "join":
        conn.join("room", info=argument)
        conn.send("=joined")
    elif command == "members":
        conn.send("=" + json.dumps([member.info for member in manager.members("room")]))
    elif command == "noticed":
        conn.send("=" + json.dumps(noticed))
    elif command == "stats":
        conn.send("=" + json.dumps({
            **(manager.stats()["backplane"] or {}), "cpu": time.process_time(),
            "threads": sorted(thread.name for thread in threading.enumerate())}))


@another.on_message
def another_message(conn: Connection, opcode: Opcode, payload: str) -> None:
    command, _, argument = payload.partition(" ")
    if command == "pid":
        conn.send(f"={os.getpid()}")
    else:
        another.broadcast(argument)


@app.route("/ws", websocket=True)
def serve() -> Response:
    return upgrader.upgrade(request)


@app.route("/another", websocket=True)
def serve_another() -> Response:
    return another_upgrader.upgrade(request)


@ws.route("/route")
def route(conn: Connection) -> None:
    for said in ws.messages(conn):
        command, _, argument = str(said).partition(" ")
        if command == "pid":
            conn.send(f"={os.getpid()}")
        elif command == "name":
            conn.send(f"={(ws.manager.stats()['backplane'] or {}).get('name')}")
        else:
            ws.manager.broadcast(argument)


@app.route("/")
def index() -> str:
    return str(os.getpid())


@app.route("/say")
def say() -> Response:
    manager.broadcast(request.args["text"])
    return jsonify(pid=os.getpid(), connections=len(manager.connections))


@app.route("/burst")
def burst() -> Response:
    for number in range(int(request.args["count"])):
        manager.broadcast(f"{request.args['sender']} {number:05}")
    return jsonify(pid=os.getpid())


@app.route("/close")
def close() -> Response:
    return jsonify(closed=manager.close(to=request.args["to"], code=4401))


@app.route("/notify")
def notify() -> Response:
    manager.notify(request.args["data"])
    return jsonify(pid=os.getpid())
