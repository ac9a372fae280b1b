"""A Flask application with the extension, and what its WebSockets are refused and ended with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from wsthread import testing
from wsthread.flask import WebSockets

Open = Callable[..., testing.WebSocket]


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    app.secret_key = "for tests only"
    app.testing = True
    return app


@pytest.fixture
def ws(app: Flask) -> WebSockets:
    return WebSockets(app)


def refusal(app: Flask, path: str, **options: Any) -> Any:
    """Try to open a WebSocket, and return the response that refuses it."""
    with pytest.raises(testing.Refused) as caught:
        testing.connect(app.test_client(), path, **options)
    return caught.value.response


def ending(ws: testing.WebSocket) -> tuple[int | None, str | None]:
    """Return the code and the reason of the server's Close, which comes next."""
    assert list(ws) == []
    ws.close()
    return ws.close_code, ws.close_reason
