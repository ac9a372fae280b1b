"""Settings of gunicorn: a new master is started in the way the tests start the first, with ``python -m gunicorn``."""

from __future__ import annotations

import sys
from typing import Any


def pre_exec(master: Any) -> None:
    """Change the command; gunicorn would run its ``__main__.py`` as a file, before whose modules ``http`` is not
    that of the standard library.
    """
    master.START_CTX["args"] = [sys.executable, "-m", "gunicorn", *sys.argv[1:]]
