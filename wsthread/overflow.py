"""What happens to a message that does not wait for its peer when the peer is too slow to take it: the overflow policy.

A peer is too slow when its outbox would take more than ``max_outbox_size`` bytes of memory. An outbox that is empty
takes a message of any size.

==============  ==================================================================================
``overflow``    what happens
==============  ==================================================================================
"close"         the message and those that wait are dropped, the connection is closed with 1013
"drop_oldest"   messages that wait are dropped until the message has room, else the message itself
"drop_newest"   the message is dropped
"block"         the sender waits until the message has room
==============  ==================================================================================

Pure. The send lock guards the outbox.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from .options import Options
from .outbox import ENTRY_COST, Outbox


class Posted(Enum):
    """What became of a message that does not wait for its peer."""

    SENT = auto()  # The kernel has it.
    QUEUED = auto()
    DROPPED = auto()
    FULL = auto()  # Nothing yet: with overflow="block", wait and try again.


class Excess(NamedTuple):
    """How a peer became too slow.

    Attributes:
        waited: bytes that waited for it, before the policy was applied.
        size: of the message that was too much, in bytes.
    """

    waited: int
    size: int


class Verdict(NamedTuple):
    """What to do with a message for a peer that is too slow.

    Attributes:
        posted: FULL, DROPPED, or None when there is room for it now.
        dropped: how many messages were dropped, the message itself included.
        close: whether to close the connection with 1013.
    """

    posted: Posted | None
    dropped: int = 0
    close: bool = False


def is_overflowing(outbox: Outbox, size: int, options: Options) -> bool:
    """Tell whether a message of so many bytes is too much for a peer."""
    return outbox.size > 0 and outbox.cost + size + ENTRY_COST > options.max_outbox_size


def judge(outbox: Outbox, size: int, options: Options) -> Verdict:
    """Apply the policy to a message of so many bytes that is too much; drop what it gives up."""
    if options.overflow == "block":
        return Verdict(Posted.FULL)
    if options.overflow == "close":
        return Verdict(Posted.DROPPED, 1 + outbox.drop(0), close=True)
    dropped = 0
    if options.overflow == "drop_oldest":
        dropped = outbox.drop(max(0, options.max_outbox_size - size - ENTRY_COST))
        if not is_overflowing(outbox, size, options):
            return Verdict(None, dropped)
    return Verdict(Posted.DROPPED, dropped + 1)
