"""Makes the token of the terminal, one for all workers, and prints the address that has it."""

from __future__ import annotations

import os
import secrets
from typing import Any

os.environ.setdefault("TERMINAL_TOKEN", secrets.token_urlsafe())


def when_ready(server: Any) -> None:
    for listener in server.LISTENERS:
        # Behind a "#" it is in no request, and so in no log.
        print(f"The terminal is at {listener}/#{os.environ['TERMINAL_TOKEN']}", flush=True)


def post_fork(server: object, worker: object) -> None:
    os.setpgid(0, 0)  # See the chat's.
