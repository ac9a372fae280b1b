"""A chat with rooms. ``make run`` serves it at http://127.0.0.1:8000/.

The server sends JSON objects that have a ``type``:

* ``members``, with the ``members`` of the room: each has an ``id`` and a ``name``. It comes whenever they change;
* ``message``, with the ``id`` its sender gave it, the ``name`` and the ``text``. The sender gets it too: that is how
  it knows that everybody has it, and what it has to send again after an interruption;
* ``error``, to one client only, with a ``text`` and the ``id`` of its message that was refused.

A client sends ``{"id": ..., "text": ...}``. Its name and its room come with the URL: ``/ws?name=Ada&room=lobby``.

Any number of workers are one chat (``make run WORKERS=4``), and those of several hosts are with a Redis (``make run
REDIS=redis://127.0.0.1``). A page that was away gets what it has missed: see wsthread.js in ``static/chat.js``.
"""

from __future__ import annotations

import json
import os
from typing import Any

from flask import Flask, render_template

from wsthread import CloseCode, Connection, History, ListenableManager, Opcode
from wsthread.flask import WebSockets

MAX_NAME = 24  # Characters, of a room as well.
MAX_TEXT = 1000
MAX_ID = 40


def backplane() -> Any:
    """Return what joins the processes: the workers of this host, or with a Redis those of others too."""
    url = os.environ.get("CHAT_REDIS")
    if not url:
        return "local"
    from wsthread.bus.redis import RedisBackplane
    return RedisBackplane(url)


app = Flask(__name__)
ws = WebSockets(app)
# Room for the longest text even when JSON escapes each of its characters; what is larger closes with 1009.
manager = ListenableManager(name="chat", max_message_size=16_384, history=History(), backplane=backplane())
ws.mount("/ws", manager)


@manager.on_connect
def join(conn: Connection) -> None:
    name, room = (" ".join(conn.request.args.get(key, default).split()) for key, default in (
        ("name", ""), ("room", "lobby")))
    for what, value in ("name", name), ("room", room):
        if not 1 <= len(value) <= MAX_NAME:
            # Not a 400 before the upgrade, because a page is not told why its handshake failed.
            conn.close(CloseCode.POLICY_VIOLATION, f"A {what} has 1 to {MAX_NAME} characters.")
            return
    conn.context = {"name": name, "room": room}
    conn.join(room, info=name)


@manager.on_message
def message(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    match parse(payload):
        case {"id": str(key), "text": str(text)} if len(key) <= MAX_ID and 1 <= len(text.strip()) <= MAX_TEXT:
            said = encode("message", id=key, name=conn.context["name"], text=text.strip())
            manager.broadcast(said, to=conn.context["room"])
        case {"id": str(key)}:
            conn.send(encode("error", id=key, text=f"A message has 1 to {MAX_TEXT} characters."))
        case _:
            conn.send(encode("error", id=None, text='A message looks like {"id": "1", "text": "Hello"}.'))


@manager.on_members
def tell_members(room: str) -> None:
    """Tell everybody in a room who is there. All workers are called, so each tells its own clients."""
    members = [{"id": member.id, "name": member.info} for member in manager.members(room)]
    manager.broadcast(encode("members", members=members), to=room, local=True)


def parse(payload: str | bytes) -> Any:
    """Return what a peer sent; None when it is no JSON, for a peer can send anything."""
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):  # The latter from "[[[[[[[[...".
        return None


def encode(event: str, **fields: Any) -> str:
    return json.dumps({"type": event, **fields})


@app.route("/")
def index() -> str:
    return render_template("index.html", max_name=MAX_NAME, max_text=MAX_TEXT)
