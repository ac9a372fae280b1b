"""flask-sock, run by gunicorn's gthread worker."""

from __future__ import annotations

import threading

from flask import Flask
from flask_sock import Server, Sock

app = Flask(__name__)
sock = Sock(app)
subscribers: set[Server] = set()
lock = threading.Lock()  # Guards the subscribers.


@sock.route("/echo")
def echo(ws: Server) -> None:
    while True:
        ws.send(ws.receive())


@sock.route("/fanout")
def fanout(ws: Server) -> None:
    with lock:
        subscribers.add(ws)
    try:
        while True:
            message = ws.receive()
            with lock:
                everyone = list(subscribers)
            for one in everyone:
                try:
                    one.send(message)
                except Exception:  # It has gone; its own thread will notice.
                    pass
    finally:
        with lock:
            subscribers.discard(ws)


@app.route("/plain")
def plain() -> str:
    return "plain"
