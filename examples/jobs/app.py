"""Jobs with live progress. ``make run EXAMPLE=jobs`` serves it at http://127.0.0.1:8000/.

A form starts a job with an ordinary POST, and a thread of the worker that got it does the work. Before each step it
writes into a table how far it is, and broadcasts the same to the group of the job: pages see it whichever worker they
are connected to (``make run EXAMPLE=jobs WORKERS=4``). A page that is reloaded, or comes back, begins with the table.

Each message has the whole state and its ``version``, so a page drops whatever is older than what it shows. Without that
the state that was just read from the table could arrive behind a broadcast that is newer.

A job ends with its process here. Give jobs that have to survive to a queue such as Celery; its tasks broadcast by
``wsthread.Publisher``.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from flask import Flask, abort, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from wsthread import BackplaneFull, Connection
from wsthread.flask import WebSockets

DATABASE = os.environ.get("JOBS_DATABASE", str(Path(__file__).with_name("jobs.sqlite3")))
STEPS = 40
STEP_TIME = 0.25  # Seconds.
LOST_AFTER = 10.0  # Seconds without a step. The process of such a job has been stopped.

app = Flask(__name__)
ws = WebSockets(app)
places = threading.Semaphore(4)  # So many jobs run at a time in each worker; the others wait.


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """Give a connection for one transaction."""
    with closing(sqlite3.connect(DATABASE)) as db, db:
        db.row_factory = sqlite3.Row
        yield db


with database() as created:
    created.execute("""CREATE TABLE IF NOT EXISTS jobs (
        id TEXT PRIMARY KEY, title TEXT, state TEXT,
        step INTEGER DEFAULT 0, version INTEGER DEFAULT 0, changed_at REAL)""")


def load(id: str) -> dict[str, Any]:
    with database() as db:
        row = db.execute("SELECT * FROM jobs WHERE id = ?", [id]).fetchone()
    if row is None:
        abort(404)  # As a page; and it closes a WebSocket with 4404.
    job = {**row, "steps": STEPS}
    if job["state"] == "running" and time.time() - job["changed_at"] > LOST_AFTER:
        job["state"] = "lost"
    return job


def save(id: str, state: str, step: int | None = None) -> None:
    """Write down how far a job is, and tell all who watch it."""
    with database() as db:
        db.execute(
            "UPDATE jobs SET state = ?, step = coalesce(?, step), version = version + 1, changed_at = ? WHERE id = ?",
            [state, step, time.time(), id])
    with suppress(BackplaneFull):  # The job is more important than its progress bar.
        ws.manager.broadcast(json.dumps(load(id)), to=f"job {id}")


def run(id: str) -> None:
    with places:
        try:
            for step in range(STEPS):
                save(id, "running", step)
                time.sleep(STEP_TIME)  # The work.
            save(id, "done", STEPS)
        except Exception:
            app.logger.exception("Job %s has failed", id)
            save(id, "failed")


@ws.route("/jobs/<id>")
def watch(conn: Connection, id: str) -> None:
    conn.join(f"job {id}")  # First, so that nothing falls between the table and the broadcasts.
    conn.send_json(load(id))
    for _ in conn:  # Nothing comes. This waits until the page is left.
        pass


@app.post("/jobs")
def start() -> Response:
    id = secrets.token_urlsafe(12)  # Nobody guesses it, so only those who are told the address can watch.
    with database() as db:
        db.execute("INSERT INTO jobs (id, title, state) VALUES (?, ?, 'waiting')", [id, request.form["title"][:80]])
    threading.Thread(target=run, args=[id], daemon=True).start()
    return redirect(url_for("page", id=id), 303)


@app.route("/jobs/<id>")
def page(id: str) -> str:
    return render_template("index.html", job=load(id))


@app.route("/")
def index() -> str:
    return render_template("index.html", job=None)
