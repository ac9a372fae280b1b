"""An application in the styles that the documentation of flask-sock describes, after docs/flask-sock.rst was followed.

Each line that differs from what it would be with flask-sock says so.
"""

from __future__ import annotations

from flask import Blueprint, Flask, request, session

from wsthread import Connection, ConnectionClosed  # Instead of simple_websocket's.
from wsthread.flask import WebSockets as Sock  # Instead of flask_sock's Sock.

sock = Sock()
bp = Blueprint("rooms", __name__, url_prefix="/rooms")


@sock.route("/echo")
def echo(ws: Connection) -> None:
    while True:
        ws.send(ws.receive())


@sock.route("/<name>/<int:room>", bp=bp)
def visit(ws: Connection, name: str, room: int) -> None:
    ws.send(f"{name} in {room}, {request.path}, {session.get('seen')}")


@bp.before_request
def before() -> tuple[str, int] | None:
    session["seen"] = True
    return None if "token" in request.args else ("a token is missing", 401)


@sock.route("/impatient")
def impatient(ws: Connection) -> None:
    """Answer, or say that nothing came."""
    while True:
        try:
            message = ws.receive(timeout=0.05)
        except TimeoutError:  # Instead of a None.
            ws.send("nothing came")
        else:
            ws.send(f"got {message!r}")


@sock.route("/clock")
def clock(ws: Connection) -> None:
    """Send, until the client says stop."""
    number = 0
    while True:
        ws.send(str(number))
        number += 1
        try:
            if ws.receive(timeout=0.01) == "stop":
                break
        except TimeoutError:  # Instead of a None.
            pass


@sock.route("/close")
def close(ws: Connection) -> None:
    ws.receive()
    ws.close(4000, "that was all")  # By position, for the names are others.


@sock.route("/last-words")
def last_words(ws: Connection) -> None:
    """See how the client closes."""
    try:
        while True:
            ws.receive()
    except ConnectionClosed as closed:
        ended.append((closed.code, closed.reason))  # Instead of reason and message.


ended: list[tuple[int | None, str]] = []


def create_app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "for tests only"
    app.config.update(WSTHREAD_PING_INTERVAL=25, WSTHREAD_MAX_MESSAGE_SIZE=1000)  # Instead of SOCK_SERVER_OPTIONS.
    sock.init_app(app)
    app.register_blueprint(bp)
    return app
