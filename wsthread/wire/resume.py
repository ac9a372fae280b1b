"""The subprotocol of clients that come back: what its messages look like. ``docs/resuming.rst`` tells the whole of it.

==================  =======================  ========================================================================
from                message                  meaning
==================  =======================  ========================================================================
client, the first   ``null`` or an object    what the client has *seen*: the last number of each publisher. ``null``
                                             when it comes for the first time
server              ``p:n``, line feed, ...  a message; behind the line feed is what the application has sent. Its
                                             number is n among those of the publisher p
server              line feed, ...           a message without number, which is not kept for later
server, text        ``p:n``                  the client has seen that number too, although it got no message
server, text        ``{...}``                a notice: ``seen`` replaces what the client has seen; ``recovered`` tells
                                             whether it has missed nothing
==================  =======================  ========================================================================

A question mark goes before the id of a publisher that the server does not know. The client may have come faster than
that publisher's messages, and is not to get what it has seen once more when they are there.

Pure: bytes in, values out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .messages import Payload

SUBPROTOCOL = "wsthread.resume.v1"
WITHOUT_NUMBER = b"\n"
_UNKNOWN = "?"
_MOST_PUBLISHERS = 10_000  # Of one client.
_MOST = 1 << 53  # What JSON numbers of browsers can tell apart.


def head(publisher: str, number: int) -> bytes:
    """Return what goes before a message that has a number."""
    return b"%b:%d\n" % (publisher.encode(), number)


def with_head(payload: Payload) -> Payload:
    """Return a message without number, as it is sent. What can be no message stays as it is."""
    if isinstance(payload, str):
        return "\n" + payload
    return WITHOUT_NUMBER + payload if isinstance(payload, (bytes, bytearray, memoryview)) else payload


def mark(publisher: str, number: int) -> str:
    """Return the message that only has a number."""
    return f"{publisher}:{number}"


def notice(**values: Any) -> str:
    """Return the message that tells a client something, such as ``seen`` and ``recovered``."""
    return json.dumps(values, separators=(",", ":"))


def doubtful(publisher: str) -> str:
    """Return what a publisher is called that the server does not know."""
    return _UNKNOWN + publisher


def split_seen(seen: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Return what a client has seen of publishers that its last server knew, and of those that it did not."""
    known, unknown = {}, {}
    for name, number in seen.items():
        if name.startswith(_UNKNOWN):
            unknown[name.removeprefix(_UNKNOWN)] = number
        else:
            known[name] = number
    return known, unknown


def parse_seen(message: str | bytes) -> Mapping[str, int] | None:
    """Return what a client has seen, from its first message; None when it comes for the first time.

    Raises:
        ValueError: the message does not say that.
    """
    try:
        seen = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the first message is no JSON: {error}") from error
    if seen is None:
        return None
    if not isinstance(seen, dict) or len(seen) > _MOST_PUBLISHERS:
        raise ValueError("the first message is neither null nor an object of usual size")
    for number in seen.values():
        if type(number) is not int or not 0 <= number < _MOST:
            raise ValueError("the first message is an object with a number that no message can have")
    return seen
