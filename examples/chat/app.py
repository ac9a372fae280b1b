"""A chat in one room. ``make run`` serves it at http://127.0.0.1:8000/.

The server sends JSON objects that have a ``type``:

* ``join`` and ``leave``, with the ``name`` and all names that are ``online`` now;
* ``message``, with the ``id`` its sender gave it, the ``name`` and the ``text``. The sender gets it too: that is how
  it knows that everybody has it, and what it has to send again after an interruption;
* ``error``, to one client only, with a ``text`` and the ``id`` of its message that was refused.

A client sends ``{"id": ..., "text": ...}``. Its name comes with the URL: ``/ws?name=Ada``.

All members are in the memory of one process, so it is served by one worker.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from flask import Flask, render_template

from wsthread import CloseCode, Connection, ListenableManager, Opcode
from wsthread.flask import WebSockets

MAX_NAME = 24  # Characters.
MAX_TEXT = 1000
MAX_ID = 40

app = Flask(__name__)
ws = WebSockets(app)
# Room for the longest text even when JSON escapes each of its characters; what is larger closes with 1009.
manager = ListenableManager(max_message_size=16_384)
ws.mount("/ws", manager)
announcing = threading.Lock()  # Guards the order of the announcements: the last one to arrive has the right names.


@manager.on_connect
def join(conn: Connection) -> None:
    name = " ".join(conn.request.args.get("name", "").split())
    if not 1 <= len(name) <= MAX_NAME:
        # Not a 400 before the upgrade, because a page is not told why its handshake failed.
        conn.close(CloseCode.POLICY_VIOLATION, f"A name has 1 to {MAX_NAME} characters.")
        return
    conn.context = name
    conn.join("chat")
    announce("join", name)


@manager.on_message
def message(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    match parse(payload):
        case {"id": str(key), "text": str(text)} if len(key) <= MAX_ID and 1 <= len(text.strip()) <= MAX_TEXT:
            manager.broadcast(encode("message", id=key, name=conn.context, text=text.strip()))
        case {"id": str(key)}:
            conn.send(encode("error", id=key, text=f"A message has 1 to {MAX_TEXT} characters."))
        case _:
            conn.send(encode("error", id=None, text='A message looks like {"id": "1", "text": "Hello"}.'))


@manager.on_close
def leave(conn: Connection) -> None:
    if conn.context is not None:
        announce("leave", conn.context)


def announce(event: str, name: str) -> None:
    """Tell everybody who came or went, and who is here now."""
    with announcing:  # A broadcast waits for nobody, so nor does this lock.
        online = [conn.context for conn in manager.in_group("chat")]
        manager.broadcast(encode(event, name=name, online=online), to="chat")


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
