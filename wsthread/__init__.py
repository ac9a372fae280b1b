"""WebSockets for the WSGI applications people already run (RFC 6455)."""

from . import platform  # noqa: F401 -- first, for its one sentence where the rest cannot be imported
from .bus.redis import RedisBackplane
from .connection import Connection
from .ending import State
from .exceptions import (
    BackplaneFull, ConnectionClosed, DetachError, HandshakeError, HandshakeRefused, InvalidJSON, InvalidPayload,
    MessageTooBig, ProtocolError, RateExceeded, WebSocketError,
)
from .fanout import Broadcast
from .handlers import ListenableManager, SimpleManager
from .history import History
from .lifecycle import dump_on_signal
from .manager import Manager
from .publisher import Publisher
from .upgrader import Upgrader
from .wire.deflate import Deflate
from .wire.frames import CloseCode, Opcode

__version__ = "1.0.0rc1"

__all__ = [
    "BackplaneFull",
    "Broadcast",
    "CloseCode",
    "Connection",
    "ConnectionClosed",
    "Deflate",
    "DetachError",
    "HandshakeError",
    "HandshakeRefused",
    "History",
    "InvalidJSON",
    "InvalidPayload",
    "ListenableManager",
    "Manager",
    "MessageTooBig",
    "Opcode",
    "ProtocolError",
    "Publisher",
    "RateExceeded",
    "RedisBackplane",
    "SimpleManager",
    "State",
    "Upgrader",
    "WebSocketError",
    "dump_on_signal",
]
