"""WebSockets for the WSGI applications people already run (RFC 6455)."""

from .connection import Connection
from .deflate import Deflate
from .exceptions import (
    ConnectionClosed, DetachError, HandshakeError, InvalidPayload, MessageTooBig, ProtocolError, WebSocketError,
)
from .frames import CloseCode, Opcode
from .lifecycle import dump_on_signal
from .listenable import ListenableManager
from .manager import Broadcast, Manager, SimpleManager
from .sending import State
from .upgrader import Upgrader

__version__ = "0.1.0"

__all__ = [
    "Broadcast",
    "CloseCode",
    "Connection",
    "ConnectionClosed",
    "Deflate",
    "DetachError",
    "HandshakeError",
    "InvalidPayload",
    "ListenableManager",
    "Manager",
    "MessageTooBig",
    "Opcode",
    "ProtocolError",
    "SimpleManager",
    "State",
    "Upgrader",
    "WebSocketError",
    "dump_on_signal",
]
