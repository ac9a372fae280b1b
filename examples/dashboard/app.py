"""A dashboard of what a database has. ``make run EXAMPLE=dashboard`` serves it at http://127.0.0.1:8000/.

All open dashboards show a change at once, whoever made it: the form of the page, in any worker
(``make run EXAMPLE=dashboard WORKERS=4``), or another process, such as this one::

    .venv/bin/python examples/dashboard/app.py Visitors 42

Whoever changes the table does nothing more than that. In each worker one thread looks whether the database has changed,
and tells the dashboards of its worker. SQLite answers that from a counter, without reading a table; with PostgreSQL
this thread would ``LISTEN``. It has the only database connection that stays open: WebSockets hold none.
"""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from flask import Flask, abort, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager
from wsthread.flask import WebSockets

DATABASE = os.environ.get("DASHBOARD_DATABASE", str(Path(__file__).with_name("dashboard.sqlite3")))
LOOK_EVERY = 0.3  # Seconds.
LIMIT = 1_000_000

app = Flask(__name__)
ws = WebSockets(app)
manager = ListenableManager(name="dashboard")
ws.mount("/ws", manager)
telling = threading.Lock()  # Guards the order: what is read later is sent later.


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """Give a connection for one transaction."""
    with closing(sqlite3.connect(DATABASE)) as db, db:
        yield db


with database() as created:
    created.execute("CREATE TABLE IF NOT EXISTS figures (name TEXT PRIMARY KEY, value INTEGER)")
    created.execute("INSERT OR IGNORE INTO figures VALUES ('Visitors', 120), ('Orders', 34), ('Open tickets', 7)")


def figures() -> str:
    with database() as db:
        return json.dumps([{"name": name, "value": value} for name, value in db.execute("SELECT * FROM figures")])


def put(name: str, value: int) -> None:
    with database() as db:
        db.execute("INSERT INTO figures VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", [name, value])


@manager.on_connect
def show(conn: Connection) -> None:
    with telling:
        start_watching()
        conn.post(figures())  # It waits for nobody, and neither does a broadcast; so this lock is free in a moment.


@functools.cache  # Once per process, so there is one thread.
def start_watching() -> None:
    threading.Thread(target=watch, daemon=True).start()


def watch() -> None:
    """Tell the dashboards of this process what other connections to the database change."""
    with closing(sqlite3.connect(DATABASE)) as db:
        seen = None
        while True:
            try:
                [(version,)] = db.execute("PRAGMA data_version")
                if version != seen:
                    with telling:
                        manager.broadcast(figures(), local=True)
                    seen = version
            except sqlite3.Error:
                app.logger.exception("The database does not answer")
            time.sleep(LOOK_EVERY)


@app.post("/figures")
def change() -> Response:
    name, value = request.form.get("name", "").strip(), request.form.get("value", type=int)
    if not 1 <= len(name) <= 40 or value is None or not 0 <= value <= LIMIT:
        abort(400)
    put(name, value)
    return redirect(url_for("index"), 303)


@app.route("/")
def index() -> str:
    return render_template("index.html", limit=LIMIT)


if __name__ == "__main__":
    put(sys.argv[1], int(sys.argv[2]))
