"""How ``make run`` ends at once when Ctrl-C is pressed."""

from __future__ import annotations

import os


def post_fork(server: object, worker: object) -> None:
    # Ctrl-C goes to all processes of the foreground group, and the master tells its workers as well. A gthread
    # worker of gunicorn 27 that is told twice may wait for itself, so it leaves the group and hears the master only.
    os.setpgid(0, 0)
