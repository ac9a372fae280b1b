"""The threaded server of ``websockets``. Argument: the port."""

from __future__ import annotations

import logging
import signal
import sys
import threading

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

subscribers: set[ServerConnection] = set()
lock = threading.Lock()  # Guards the subscribers.


def handle(ws: ServerConnection) -> None:
    assert ws.request is not None
    if ws.request.path == "/fanout":
        fanout(ws)
    else:
        for message in ws:
            ws.send(message)


def fanout(ws: ServerConnection) -> None:
    with lock:
        subscribers.add(ws)
    try:
        for message in ws:
            with lock:
                everyone = list(subscribers)
            for one in everyone:
                try:
                    one.send(message)
                except ConnectionClosed:
                    pass  # Its own thread will notice.
    finally:
        with lock:
            subscribers.discard(ws)


logging.getLogger("websockets").setLevel(logging.CRITICAL)  # It tells of each client that just goes away.
with serve(handle, "127.0.0.1", int(sys.argv[1]), compression=None, max_size=64 << 20) as server:
    server.socket.listen(2048)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
