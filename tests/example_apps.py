"""The examples in this process: each test has an ``app.py`` of its own."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from wsthread import testing

EXAMPLES = Path(__file__).parent.parent / "examples"
_numbers = itertools.count()


@contextmanager
def loaded(name: str, **environment: str) -> Iterator[Any]:
    """Give the module ``app`` of an example, imported anew with more environment variables."""
    spec = importlib.util.spec_from_file_location(f"example_{name}_{next(_numbers)}", EXAMPLES / name / "app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Flask asks there where its templates are.
    try:
        with patch.dict(os.environ, environment):
            spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


def say(ws: testing.WebSocket, value: Any) -> None:
    """Send a value as JSON."""
    ws.send(json.dumps(value))


def hear(ws: testing.WebSocket) -> Any:
    """Return what the JSON of the next message stands for."""
    return json.loads(ws.receive())
