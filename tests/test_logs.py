"""What the library calls things when it speaks to the operator."""

from __future__ import annotations

import pytest
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from wsthread.logs import logger, name_of


@pytest.mark.parametrize(("path", "address", "name"), [
    ("/ws", "127.0.0.1", "WebSocket 127.0.0.1 '/ws'"),
    ("/ws?token=secret", "::1", "WebSocket ::1 '/ws'"),  # Secrets are in queries.
    ("/ws", None, "WebSocket local '/ws'"),  # A Unix socket.
    ("/two%0Alines", "127.0.0.1", r"WebSocket 127.0.0.1 '/two\nlines'"),
])
def test_name_of(path: str, address: str | None, name: str) -> None:
    environ = EnvironBuilder(path, environ_base={} if address is None else {"REMOTE_ADDR": address}).get_environ()
    assert name_of(Request(environ)) == name


def test_logger() -> None:
    assert logger.name == "wsthread"
