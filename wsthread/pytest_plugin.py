"""A fixture for pytest, which is there when wsthread is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from werkzeug.test import Client

from .testing import WebSocket, connect


@pytest.fixture
def websocket() -> Iterator[Callable[..., WebSocket]]:
    """Return a function that opens a WebSocket to an application or a test client, and close all it opened after all.

    ::

        def test_echo(websocket, app):
            ws = websocket(app, "/echo")
            ws.send("hello")
            assert ws.receive() == "hello"

    It takes what :func:`wsthread.testing.connect` takes.
    """
    with ExitStack() as opened:

        def open_websocket(app: Callable[..., Any] | Client, path: str = "/", **options: Any) -> WebSocket:
            return opened.enter_context(connect(app, path, **options))

        yield open_websocket
