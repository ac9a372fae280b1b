"""A shell in the browser. ``make run EXAMPLE=terminal`` prints its address, which begins with http://127.0.0.1:8000/.

Whoever gets in can do all that you can. So it listens on this machine only, pages of other sites are refused like
everywhere, it answers to its own names only, and it wants the token that is printed at the start.

Each WebSocket has a shell and a pseudoterminal of its own, and both end with the tab. Binary messages are what is typed
and what is printed. A text message is the size of the window: ``{"rows": 24, "columns": 80}``.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import secrets
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from contextlib import suppress

from flask import Flask, abort, render_template, request

from wsthread import Connection, ConnectionClosed
from wsthread.flask import WebSockets

TOKEN = os.environ.pop("TERMINAL_TOKEN")  # From gunicorn.conf.py. Gone from here, so no shell has it.
SHELL = os.environ.get("SHELL", "/bin/sh")
# Makes the terminal the shell's, so that Ctrl-C works, and ignores no signals, as Python and jobs in the background do.
# It is a program since pty.fork() is not for a process with threads.
START = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""

app = Flask(__name__)
app.config["WSTHREAD_MAX_CONNECTIONS"] = 20
ws = WebSockets(app)


@app.before_request
def check_host() -> None:
    """Refuse pages whose name an attacker lets resolve to this machine (DNS rebinding)."""
    if request.host.partition(":")[0] not in ("127.0.0.1", "localhost"):
        abort(403)


@ws.route("/shell", subprotocols=["terminal"], max_message_size=65_536)
def shell(conn: Connection) -> None:
    offered = [name.strip() for name in conn.request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    if not any(secrets.compare_digest(name.encode(), f"token.{TOKEN}".encode()) for name in offered):
        abort(403)  # It closes with 4403, which the page is told, unlike the status of a handshake.
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-ISc", START, SHELL], stdin=its_end, stdout=its_end, stderr=its_end,
        start_new_session=True, cwd=os.path.expanduser("~"), env={**os.environ, "TERM": "dumb", "PAGER": "cat"})
    os.close(its_end)
    os.set_blocking(terminal, False)
    printing = threading.Thread(target=send_output, args=[conn, terminal, process])
    printing.start()
    try:
        with suppress(OSError):  # The shell ended just now.
            for message in conn:
                if isinstance(message, bytes):
                    send_input(conn, terminal, message)
                else:
                    resize(terminal, message)
    finally:
        printing.join()
        os.close(terminal)


def send_output(conn: Connection, terminal: int, process: subprocess.Popen[bytes]) -> None:
    """Send what the shell prints until it ends or the client leaves; then end the other one."""
    poller = select.poll()
    poller.register(terminal, select.POLLIN)
    with suppress(OSError, ConnectionClosed):  # Reading raises EIO, an OSError, when the shell has ended.
        while conn.connected:
            if poller.poll(500):  # Milliseconds.
                conn.send(os.read(terminal, 65_536))  # It waits for a slow client, and so the shell does too.
    conn.close(1000, "The shell has ended.")
    process.send_signal(signal.SIGHUP)  # As if a window were closed: the shell ends, and its jobs.
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def send_input(conn: Connection, terminal: int, data: bytes) -> None:
    """Pass on what is typed as fast as the shell reads it, for as long as the client is there."""
    poller = select.poll()
    poller.register(terminal, select.POLLOUT)
    while data and conn.connected:
        if poller.poll(500):
            with suppress(BlockingIOError):
                data = data[os.write(terminal, data):]


def resize(terminal: int, message: str) -> None:
    with suppress(ValueError, RecursionError):
        match json.loads(message):
            case {"rows": int(rows), "columns": int(columns)} if 1 <= rows <= 1000 and 1 <= columns <= 1000:
                fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@app.route("/")
def index() -> str:
    return render_template("index.html")
