"""Chooses between the optional C extension and Python, which do the same.

The extension is built at installation when a C compiler is there. ``WSTHREAD_SPEEDUPS=0`` in the environment turns it
off; ``manager.stats()["speedups"]`` tells.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType


def _load() -> ModuleType | None:
    if os.environ.get("WSTHREAD_SPEEDUPS") == "0":
        return None
    try:
        return importlib.import_module("wsthread._speedups")
    except ImportError:  # Not built: there was no compiler, or there was no installation at all.
        return None


#: The extension, or None.
c = _load()
