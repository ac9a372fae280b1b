"""Settings of gunicorn: a new master is started in the way the tests start the first, with ``python -m gunicorn``."""

from __future__ import annotations

import sys
from typing import Any


def pre_exec(master: Any) -> None:
    """Change the command: run as a file, ``gunicorn/__main__.py`` finds its ``http`` before the standard library's."""
    master.START_CTX["args"] = [sys.executable, "-m", "gunicorn", *sys.argv[1:]]
