"""A Flask application whose process tells in the server's log what becomes of it: ``<pid> <event>`` lines.

The manager's options come as JSON from the environment variable MANAGER. With OWN_HANDLER the application handles
SIGTERM before gunicorn does.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

from flask import Flask, jsonify, request
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode, Upgrader

CHILD_LIFE = 60  # Seconds; longer than any test waits for what the child must not hold up.

app = Flask(__name__)
manager = ListenableManager(**json.loads(os.environ.get("MANAGER", "{}")))
upgrader = Upgrader(manager)


def tell(event: str) -> None:
    """Write a line in one go: those of several processes and threads do not mix."""
    os.write(1, f"{os.getpid()} {event}\n".encode())


# Registered before any of wsthread's, so it is called after those: the process ends by itself, and they are done.
atexit.register(lambda: tell("left"))


def stall(number: int, frame: FrameType | None) -> None:
    """Keep the main thread from whatever it does."""
    time.sleep(60)


def terminate(number: int, frame: FrameType | None) -> None:
    """Do something and leave the rest to gunicorn."""
    tell("terminated")
    if callable(servers_handler):
        servers_handler(number, frame)


if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGALRM, stall)
    servers_handler = signal.getsignal(signal.SIGTERM)
    if "OWN_HANDLER" in os.environ:
        signal.signal(signal.SIGTERM, terminate)


@manager.on_message
def message(conn: Connection, opcode: Opcode, payload: str) -> None:
    """Do what the message says."""
    command, _, argument = payload.partition(" ")
    if command == "sleep":
        tell("handler begins")
        time.sleep(float(argument))
        tell("handler ends")
        conn.send("slept")
    elif command == "pid":
        conn.send(str(os.getpid()))
    elif command == "join":
        conn.join(argument)
        conn.send("joined")
    elif command == "child":
        conn.send(str(CHILDREN[argument]()))
    else:
        conn.send(payload)


@manager.on_close
def closed(conn: Connection) -> None:
    tell(f"closed {conn.close_code}")


def fork() -> int:
    """Start a child by os.fork()."""
    pid = os.fork()
    if not pid:
        tell(f"child of a fork with {len(manager.connections)} connections")
        time.sleep(CHILD_LIFE)
        os._exit(0)
    return pid


def foreign_fork() -> int:
    """Start a child that Python does not know of, as a library in C may do."""
    libc = ctypes.PyDLL(None)
    pid: int = libc.fork()
    if not pid:
        libc.sleep(CHILD_LIFE)
        libc._exit(0)
    return pid


def popen() -> int:
    """Start a child by subprocess, with everything left open that may be inherited."""
    program = f"import time; time.sleep({CHILD_LIFE})"
    return subprocess.Popen([sys.executable, "-c", program], close_fds=False).pid


def process() -> int:
    """Start a child by multiprocessing."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(CHILD_LIFE,))
    child.start()
    assert child.pid is not None
    return child.pid


CHILDREN = {"fork": fork, "foreign fork": foreign_fork, "subprocess": popen, "multiprocessing": process}


@app.route("/")
def index() -> str:
    return "plain HTTP"


@app.route("/ws", websocket=True)
def ws() -> Response:
    return upgrader.upgrade(request)


@app.route("/slow")
def slow() -> str:
    tell("request begins")
    time.sleep(float(request.args["seconds"]))
    return "slept"


@app.route("/stall")
def stall_main_thread() -> str:
    """Let the main thread hang, which is the one that tells gunicorn's master that the worker is alive."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
    return "stalled"


@app.route("/broadcast")
def broadcast() -> Response:
    """Send a message of ``size`` bytes to a group or to everyone in this process."""
    outcome = manager.broadcast(int(request.args["size"]) * "x", to=request.args.get("to"))
    return jsonify(pid=os.getpid(), **outcome._asdict())


@app.route("/stats")
def stats() -> Response:
    return jsonify(pid=os.getpid(), **manager.stats())
