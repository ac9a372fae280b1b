"""WebSockets for the WSGI applications people already run (RFC 6455)."""

from .connection import Connection
from .exceptions import (
    ConnectionClosed, DetachError, HandshakeError, HandshakeRefused, InvalidPayload, MessageTooBig, ProtocolError,
    WebSocketError,
)
from .lifecycle import dump_on_signal
from .listenable import ListenableManager
from .manager import Broadcast, Manager, SimpleManager
from .sending import State
from .upgrader import Upgrader
from .wire.deflate import Deflate
from .wire.frames import CloseCode, Opcode

__version__ = "0.1.0"

__all__ = [
    "Broadcast",
    "CloseCode",
    "Connection",
    "ConnectionClosed",
    "Deflate",
    "DetachError",
    "HandshakeError",
    "HandshakeRefused",
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
