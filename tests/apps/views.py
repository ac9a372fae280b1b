"""A Flask application that does around a WebSocket what applications do around any view."""

from __future__ import annotations

import json
import logging
from typing import Any

from flask import Flask, abort, jsonify, make_response, redirect, request, session
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode, Upgrader

logging.basicConfig()

app = Flask(__name__)
app.secret_key = "for tests only"
#: What happened to the connections, as [callback, detail], in order.
events: list[list[Any]] = []
manager = ListenableManager()


@manager.on_connect
def tell(conn: Connection) -> None:
    """Send what a callback sees of the handshake's request."""
    seen = conn.request
    events.append(["on_connect", seen.path])
    if seen.args.get("raise") == "on_connect":
        raise LookupError("on_connect was asked to raise")
    conn.send(json.dumps({
        "path": seen.path,
        "root": seen.root_path,
        "url": seen.url,
        "view_args": getattr(seen, "view_args", None),
        "endpoint": getattr(seen, "endpoint", None),
        "args": seen.args.to_dict(flat=False),
        "cookies": dict(seen.cookies),
        "agent": seen.headers.get("User-Agent"),
        "remote_address": conn.remote_address,
    }))


@manager.on_message
def message(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    if payload == "raise":
        raise ZeroDivisionError("on_message was asked to raise")
    conn.send(payload)


@manager.on_error
def error(conn: Connection, error: Exception) -> None:
    events.append(["on_error", str(error)])


@manager.on_close
def closed(conn: Connection) -> None:
    events.append(["on_close", conn.close_code])


upgrader = Upgrader(manager)


@app.before_request
def refuse_some() -> Response | None:
    return make_response("no guests\n", 403) if "guest" in request.args else None


@app.after_request
def add_headers(response: Response) -> Response:
    response.headers["X-After-Request"] = "was here"
    return response


@app.teardown_request
def note_end(error: BaseException | None) -> None:
    events.append(["teardown", None if error is None else str(error)])


@app.route("/room/<name>/<int:seat>", websocket=True)
def room(name: str, seat: int) -> Response:
    return upgrader.upgrade(request)


@app.route("/session", websocket=True)
def count_visits() -> Response:
    session["visits"] = session.get("visits", 0) + 1
    return upgrader.upgrade(request, headers={"X-Visits": str(session["visits"])})


@app.route("/decorated", websocket=True)
def decorated() -> Response:
    response = make_response(upgrader.upgrade(request))
    response.set_cookie("view", "1")
    response.headers.add("X-Twice", "one")
    response.headers.add("X-Twice", "two")
    return response


@app.route("/private", websocket=True)
def private() -> Response:
    abort(401)


@app.route("/moved", websocket=True)
def moved() -> Response:
    return redirect("/session")


@app.route("/raises", websocket=True)
def raises() -> Response:
    """Raise when all was ready."""
    upgrader.upgrade(request)
    raise ArithmeticError("the view was asked to raise")


@app.route("/both")
@app.route("/both", websocket=True)
def both() -> Response | str:
    """Be a page for browsers and a WebSocket for its script."""
    return upgrader.upgrade(request) if "Upgrade" in request.headers else "a page"


@app.route("/events")
def show_events() -> Response:
    return jsonify(events)
