"""A Flask application with an echo in both styles, a few senders, and a look at what its process holds."""

from __future__ import annotations

import functools
import gc
import random
import threading

from flask import Flask, jsonify, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode, SimpleManager, Upgrader

app = Flask(__name__)
# No pings: they would come between what the tests compare.
manager = ListenableManager(max_message_size=1 << 27, close_timeout=5, ping_interval=None)
closed: list[tuple[int | None, str | None]] = []
connected = 0


@manager.on_connect
def count(conn: Connection) -> None:
    global connected
    connected += 1


@manager.on_message
def echo(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    conn.send(payload)


@manager.on_close
def note(conn: Connection) -> None:
    closed.append((conn.close_code, conn.close_reason))


def echo_loop(conn: Connection) -> None:
    for message in conn:
        conn.send(message)


def send_much(conn: Connection) -> None:
    """Send ``count`` messages of ``size`` bytes."""
    for number in range(int(conn.request.args["count"])):
        conn.send(noise(number, int(conn.request.args["size"])))


def send_from_threads(conn: Connection) -> None:
    """Send from many threads at a time: messages of mixed sizes, each thread's numbered, and pings between them."""

    def work(thread: int) -> None:
        for number in range(int(conn.request.args["count"])):
            payload = bytes([thread, number]) + noise(thread << 8 | number, MIXED_SIZES[number % len(MIXED_SIZES)])
            conn.send(payload)
            conn.ping(payload[:2])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(int(conn.request.args["threads"]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


#: What send_from_threads sends; the last ones are more than a socket buffer takes in a go.
MIXED_SIZES = (0, 1, 123, 124, 1000, 65534, 70_000, 300_000)


def noise(seed: int, size: int) -> bytes:
    """Return bytes that tell when some are missing, doubled or moved."""
    if not size:
        return b""
    # Not all of it at random: that takes long, and nothing else runs in the process meanwhile.
    part = random.Random(seed).randbytes(min(size, 65_537))
    return (part * (size // len(part) + 1))[:size]


upgrader = Upgrader(manager, subprotocols=["v2", "v1"])
simple = Upgrader(SimpleManager(echo_loop, max_message_size=1 << 27, ping_interval=None))
much = Upgrader(SimpleManager(send_much, ping_interval=None))
threads = Upgrader(SimpleManager(send_from_threads, ping_interval=None))
# Without Flask in between, which refuses some requests by itself.
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/any": upgrader})  # type: ignore[method-assign]


@app.route("/")
def index() -> str:
    return "plain HTTP"


@app.route("/echo", websocket=True)
@app.route("/echo")
def echo_view() -> Response:
    return upgrader.upgrade(request)


@app.route("/simple", websocket=True)
def simple_view() -> Response:
    return simple.upgrade(request)


@app.route("/much", websocket=True)
def much_view() -> Response:
    return much.upgrade(request)


@app.route("/threads", websocket=True)
def threads_view() -> Response:
    return threads.upgrade(request)


@app.route("/broadcast", methods=["POST"])
def broadcast() -> str:
    """Send the body to everyone, as text."""
    manager.broadcast(request.get_data(as_text=True))
    return "sent"


@app.route("/push", methods=["POST"])
def push() -> str:
    """Send the body to the newest connection, as binary."""
    manager.connections[-1].send(request.get_data())
    return "sent"


@app.route("/stats")
def stats() -> Response:
    """Tell what the tests compare, the connection counter of gunicorn's gthread worker included."""
    return jsonify(
        connected=connected,
        closed=closed,
        open=len(manager.connections),
        threads=threading.active_count(),
        nr_conns=getattr(gthread_worker(), "nr_conns", None),
    )


@functools.cache
def gthread_worker() -> object:
    return next((found for found in gc.get_objects() if type(found).__name__ == "ThreadWorker"), None)
