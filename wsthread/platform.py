"""What the system has to have. The package imports this first, so that whoever lacks it reads one sentence.

Taking a socket over from the WSGI server, forks and limits are those of Unix. On Windows the first import that fails
would tell of a module ``resource``, which nobody can install.
"""

from __future__ import annotations

import importlib.util
import sys

_NEEDED = ("resource", "select", "socket")
_missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    raise ImportError(
        f"wsthread needs Linux, macOS or another Unix, and {sys.platform!r} has no {' and no '.join(_missing)}: on "
        "Windows, run the application in WSL or in a container")
