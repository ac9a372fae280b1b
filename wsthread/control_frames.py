"""Control frames of the peer (RFC 6455 5.5): a Ping gets its Pong, a Pong tells the latency, a Close gets its Close."""

from __future__ import annotations

from .sending import Sender
from .wire.frames import Opcode
from .wire.messages import Message


def answer(event: Message, sender: Sender) -> None:
    """Do what a control frame asks for. Whoever owns the receiving half calls it, without the send lock."""
    assert isinstance(event.payload, bytes)
    if event.opcode is Opcode.PING:
        sender.pong(event.payload)
    elif event.opcode is Opcode.PONG:
        sender.note_pong(event.payload)
    elif event.opcode is Opcode.CLOSE:
        sender.answer_close()
