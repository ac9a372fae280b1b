"""What doctor looks at from outside: a URL, and as whom it goes there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..client import ClientConnection, connect
from ..wire.client_handshake import parse_url


@dataclass(frozen=True)
class Visit:
    """What is looked at, and how.

    Attributes:
        url: ``ws://`` or ``wss://``.
        options: those of :func:`wsthread.client.connect` besides the URL and the Origin.
        page: the Origin of handshakes; None for that of a page of the same host and port.
        idle: seconds to stay without a message of ours; 0 for none.
        broadcast: a message that an application is to send to all; None for none.
    """

    url: str
    options: dict[str, Any]
    page: str | None = None
    idle: float = 0
    broadcast: str | None = None

    @property
    def timeout(self) -> float:
        """Seconds that each step may take."""
        return float(self.options.get("timeout", 10.0))

    @property
    def origin(self) -> str:
        """The Origin of handshakes."""
        target = parse_url(self.url)
        return self.page or f"{'https' if target.secure else 'http'}://{target.host_header}"

    def open(self, url: str | None = None, origin: str | None = None) -> ClientConnection:
        """Open a WebSocket.

        Args:
            url: another one than that of the visit; None for that.
            origin: None for none.
        """
        return connect(url or self.url, origin=origin, **self.options)
