"""Messages that wait for the application: their order, and what they cost."""

from __future__ import annotations

import pytest

from wsthread import Opcode
from wsthread.inbox import Inbox
from wsthread.wire.messages import Message


def test_order() -> None:
    inbox = Inbox(1000)
    messages = [Message(Opcode.TEXT, "a"), Message(Opcode.BINARY, b"b"), Message(Opcode.TEXT, "")]
    for message in messages:
        inbox.add(message)
    assert len(inbox) == 3
    assert [inbox.take() for _ in messages] == messages
    assert (len(inbox), inbox.size, inbox.is_full) == (0, 0, False)


@pytest.mark.parametrize(("payload", "least"), [
    ("", 100), (b"", 100), ("a" * 1000, 1000), (b"a" * 1000, 1000), ("\xe9" * 1000, 1000), ("\u20ac" * 1000, 2000),
    ("\U0001f642" * 1000, 4000),
])
def test_a_message_costs_at_least_the_memory_of_its_payload(payload: str | bytes, least: int) -> None:
    """A tiny one costs the memory of an object, so that many of them fill the inbox, too."""
    inbox = Inbox(1 << 20)
    inbox.add(Message(Opcode.TEXT, payload))
    assert least <= inbox.size <= 4 * least + 200


def test_it_is_full_when_it_holds_as_much_as_it_may() -> None:
    inbox = Inbox(1000)
    added = 0
    while not inbox.is_full:
        inbox.add(Message(Opcode.BINARY, b"x" * 100))
        added += 1
    assert 2 < added < 10
    inbox.take()
    assert not inbox.is_full
