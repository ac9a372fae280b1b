"""What the library tells the operator: the ``wsthread`` logger, and what it calls things."""

from __future__ import annotations

import logging

from werkzeug.wrappers import Request

logger = logging.getLogger("wsthread")


def name_of(request: Request) -> str:
    """Return what log lines call the connection that came of a request."""
    return f"WebSocket {request.remote_addr or 'local'} {request.path!r}"
