"""What the tests of TLS talk to: both directions busy at a time, a flood that drops, and the client's certificate."""

from __future__ import annotations

import threading
import time
import zlib

from flask import Flask, jsonify
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.wrappers import Response

from wsthread import Connection, ConnectionClosed, ListenableManager, SimpleManager, Upgrader

SIZES = (0, 1, 100, 5000, 16383, 16384, 70_000)
app = Flask(__name__)
noted: list[str] = []
noted_numbers: list[int] = []


def numbered(number: int) -> bytes:
    """Return a message with its number, its checksum and a payload."""
    payload = number.to_bytes(4, "big") * (SIZES[number % len(SIZES)] // 4 + 1)
    return number.to_bytes(4, "big") + zlib.crc32(payload).to_bytes(4, "big") + payload


def check(message: bytes, number: int) -> None:
    """Raise ValueError if it is not the message with that number."""
    if message != numbered(number):
        raise ValueError(f"not message {number}: {message[:20]!r} of {len(message)} bytes")


def both(conn: Connection) -> None:
    """Send and receive at the same time, in two threads, until the client closes."""
    def send() -> None:
        number = 0
        try:
            while True:
                conn.send(numbered(number))
                number += 1
        except ConnectionClosed:
            noted.append(f"sent {number}")

    writer = threading.Thread(target=send)
    writer.start()
    number = 0
    for message in conn:
        assert isinstance(message, bytes)
        try:
            check(message, number)
        except ValueError as error:
            noted.append(repr(error))
            break
        number += 1
    writer.join()
    noted.append(f"received {number}")


def half(conn: Connection) -> None:
    """Receive with a deadline, and tell how long that took."""
    begun = time.monotonic()
    try:
        conn.receive(timeout=0.8)
    except TimeoutError:
        conn.send(f"{time.monotonic() - begun:.2f}")


def echo(conn: Connection) -> None:
    for message in conn:
        conn.send(message)


def certificate(conn: Connection) -> None:
    found = conn.request.environ.get("wsthread.client_certificate")
    conn.send_json(found and [value for _, value in found["subjectAltName"]])


flood = ListenableManager(overflow="drop_oldest", max_outbox_size=1 << 18, write_timeout=None)


@app.route("/flood/<int:size>/<int:count>", methods=["POST"])
def send_flood(size: int, count: int) -> str:
    """Broadcast numbered messages."""
    for _ in range(count):
        noted_numbers.append(len(noted_numbers))
        flood.broadcast(noted_numbers[-1].to_bytes(4, "big") * (size // 4))
    return "sent"


@app.route("/last", methods=["POST"])
def send_last() -> str:
    """Send what is not dropped."""
    flood.connections[0].send("last")
    return "sent"


@app.route("/noted")
def show() -> Response:
    return jsonify(noted)


@app.route("/")
def index() -> str:
    return "plain HTTP"


app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {  # type: ignore[method-assign]
    "/both": Upgrader(SimpleManager(both, max_message_size=1 << 27)), "/half": Upgrader(SimpleManager(half)),
    "/echo": Upgrader(SimpleManager(echo)),
    "/certificate": Upgrader(SimpleManager(certificate)), "/flood-ws": Upgrader(flood)})
