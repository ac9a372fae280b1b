"""What a process remembers of messages, so that clients which come back get what they have missed.

A *ring* keeps the last messages that this process has delivered, whoever published them, in the order of their
delivery. Each has the publisher's id and its number there (:mod:`wsthread.bus.backplane`). A client keeps the number of
the last message that it saw of each publisher: its *seen* numbers. When it comes back, to this process or to another
one of the same room, they tell what it has missed.

For each publisher there is a *floor*: this process knows all messages with larger numbers, for it has them in its ring
or will deliver them. The floor rises when a message leaves the ring, and when the process itself misses one. A client
that has seen less than the floor may have missed what nobody can give it, so the ring does not *cover* it.

Pure; the caller's lock guards it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import NamedTuple

_MOST_PUBLISHERS = 1000  # Each restart of a process is another one, and not every backplane tells when one has gone.
_PARTS = 4  # After what part of a ring, or of its time, clients have to be told anew.

Groups = frozenset[str]


@dataclass(frozen=True)
class History:
    """How much of its messages a manager keeps for clients that come back. What is reached first counts.

    Attributes:
        count: messages. Default 1,000.
        seconds: how long they are kept. Default 300.
        bytes: of their payloads together. Default 16 MiB.

    Raises:
        ValueError: a value that is no number greater than 0.
    """

    count: int = 1000
    seconds: float = 300.0
    bytes: int = 16 << 20

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not (is_whole or one.name == "seconds" and isinstance(value, float)) or not value > 0:
                raise ValueError(f"{one.name} is {value!r}, it must be a number greater than 0")


class Kept(NamedTuple):
    """A message in the ring.

    Attributes:
        publisher: the process that has published it.
        number: its number there.
        to: the groups that get it; None for all connections.
        exclude: groups that do not.
        without: ids of connections that do not.
        is_text: whether it is text and not binary.
        payload: its bytes.
        kept_at: since when it is here, in seconds.
    """

    publisher: str
    number: int
    to: Groups | None
    exclude: Groups
    without: frozenset[str]
    is_text: bool
    payload: bytes
    kept_at: float

    def is_for(self, id: str, groups: Groups) -> bool:
        """Tell whether a connection gets it that has this id and is in these groups."""
        return (self.to is None or not self.to.isdisjoint(groups)) and (
            id not in self.without and self.exclude.isdisjoint(groups))


class Memory(NamedTuple):
    """What one process tells another one that begins.

    Attributes:
        publishers: the last number and the floor of each.
        kept: the messages, in the order of their delivery.
    """

    publishers: dict[str, tuple[int, int]]
    kept: list[Kept]

    def encode(self, now: float) -> bytes:
        """Return it as bytes; the processes need not have the same clock."""
        head = json.dumps({"publishers": self.publishers, "kept": [[
            one.publisher, one.number, None if one.to is None else sorted(one.to), sorted(one.exclude),
            one.is_text, len(one.payload), now - one.kept_at] for one in self.kept]}).encode()
        return b"".join([len(head).to_bytes(8, "big"), head, *[one.payload for one in self.kept]])

    @classmethod
    def decode(cls, data: bytes, now: float) -> Memory:
        """Return it from what :meth:`encode` has made, of the same version of the library."""
        place = 8 + int.from_bytes(data[:8], "big")
        told, kept = json.loads(data[8:place]), []
        for publisher, number, to, exclude, is_text, size, age in told["kept"]:
            kept.append(Kept(
                publisher, number, None if to is None else frozenset(to), frozenset(exclude), frozenset(), is_text,
                data[place:place + size], now - age))
            place += size
        return cls({one: (number, floor) for one, (number, floor) in told["publishers"].items()}, kept)


class Ring:
    """The last messages of a process.

    Args:
        history: how many.

    Attributes:
        end: the place behind the last message. Places are numbered from 0 on, and keep their numbers.
        size: bytes of the messages.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._kept: deque[Kept] = deque()
        self.size = 0
        self.end = 0
        self._numbers: dict[str, int] = {}  # The last one of each publisher, whatever it was; who published last, last.
        self._floors: dict[str, int] = {}  # For the same publishers.
        self._gone: dict[str, float] = {}  # Those of them that have ended, and when.
        self._added = 0  # Bytes that were ever added.
        self._told_at = 0.0  # When note_told() was called last, ...
        self._told_end = self._told_added = 0  # ... what end and _added were then, ...
        self._is_news = False  # ... and whether a number has changed since then.

    # What has come

    def begin(self, publisher: str, number: int) -> None:
        """Note that all messages of a publisher come from the one behind this number on."""
        last = self._numbers.pop(publisher, None)
        if last is None or number > last:
            self._floors[publisher] = number
        elif number < last:  # Its numbers begin anew. Who has seen one of the old ones cannot be told from others.
            self._floors[publisher] = last + 1
            self._drop(publisher)
        self._gone.pop(publisher, None)
        self._numbers[publisher] = number
        self._is_news = True
        self._forget_publishers()

    def _drop(self, publisher: str) -> None:
        """Drop the messages of a publisher. Every place that was read from so far is one of before the ring then."""
        self._kept = deque([kept for kept in self._kept if kept.publisher != publisher])
        self.size = sum([len(kept.payload) for kept in self._kept])
        self.end += len(self._kept) + 1

    def note(self, publisher: str, number: int) -> None:
        """Note that something of a publisher has come, a message or not. Its floor rises if something before did not.
        """
        last = self._numbers.pop(publisher, None)
        if last is None or number > last + 1:
            self._floors[publisher] = number - 1
        self._numbers[publisher] = number
        self._is_news = True
        if last is None:
            self._forget_publishers()

    def note_own(self, publisher: str, number: int) -> None:
        """Note a number of this process. No floor rises, for it knows that the numbers in between are no messages."""
        self._numbers.pop(publisher, None)
        self._floors.setdefault(publisher, 0)
        self._numbers[publisher] = number
        self._is_news = True

    def add(self, kept: Kept) -> None:
        """Keep a message that was noted."""
        self._kept.append(kept)
        self.end += 1
        self.size += len(kept.payload)
        self._added += len(kept.payload)
        self.expire(kept.kept_at)

    def miss(self, publisher: str | None) -> None:
        """Note that messages of a publisher were missed; None when it is not known whose.

        From then on the ring covers only clients that have seen a later one of its messages.
        """
        for one in [*self._numbers] if publisher is None else [publisher]:
            if one in self._numbers:
                self._floors[one] = self._numbers[one] + 1

    def forget(self, publisher: str, now: float) -> None:
        """Note that a publisher has ended. What it published is kept as long as ever."""
        if publisher in self._numbers:
            self._gone[publisher] = now

    def expire(self, now: float) -> None:
        """Drop what is too much or too old."""
        history, kept = self._history, self._kept
        oldest = now - history.seconds
        while kept and (len(kept) > history.count or self.size > history.bytes or kept[0].kept_at < oldest):
            first = kept.popleft()
            self.size -= len(first.payload)
            if first.publisher in self._floors:
                self._floors[first.publisher] = max(self._floors[first.publisher], first.number)
        for publisher in [one for one, gone_at in self._gone.items() if gone_at < oldest]:
            self._forget(publisher)

    def _forget_publishers(self) -> None:
        while len(self._numbers) > _MOST_PUBLISHERS:
            self._forget(next(iter(self._numbers)))

    def _forget(self, publisher: str) -> None:
        del self._numbers[publisher], self._floors[publisher]
        self._gone.pop(publisher, None)
        self._is_news = True

    # What a client is to know

    def number(self, publisher: str) -> int | None:
        """Return the last number of a publisher; None when it is unknown."""
        return self._numbers.get(publisher)

    @property
    def seen(self) -> dict[str, int]:
        """What a client has seen that has got everything up to now."""
        return {publisher: number for publisher, number in self._numbers.items() if number}

    def is_to_be_told(self, now: float) -> bool:
        """Tell whether clients have to be told anew what they have seen.

        A client gets the messages of its own groups only. If it were told of no others, it would soon seem to have
        missed all that has left the ring.
        """
        history = self._history
        return self._is_news and (
            self.end - self._told_end >= history.count / _PARTS
            or self._added - self._told_added >= history.bytes / _PARTS
            or now - self._told_at >= history.seconds / _PARTS)

    def note_told(self, now: float) -> None:
        """Note that they were told."""
        self._told_at, self._told_end, self._told_added, self._is_news = now, self.end, self._added, False

    # A client that comes back

    @property
    def start(self) -> int:
        """The place of the first message."""
        return self.end - len(self._kept)

    def covers(self, seen: Mapping[str, int]) -> bool:
        """Tell whether everything is here that a client with these numbers may have missed."""
        return all([publisher in self._floors for publisher in seen]) and all(
            [seen.get(publisher, 0) >= floor for publisher, floor in self._floors.items()])

    def read(self, place: int, count: int) -> list[Kept] | None:
        """Return so many messages from a place on; None when one of them has left the ring."""
        start = self.start
        if place < start:
            return None
        return list(islice(self._kept, place - start, place - start + count))

    # A process that begins later

    def recall(self) -> Memory:
        """Return what another process may take over that begins."""
        return Memory({one: (number, self._floors[one]) for one, number in self._numbers.items()}, list(self._kept))

    def restore(self, memory: Memory) -> None:
        """Take over what another process remembers from before this one has begun.

        For the publishers that have begun here, that is what came before, if the other process had got all of that.
        """
        ours: dict[str, int] = {}  # The last number of each publisher that is taken over.
        for publisher, (number, floor) in memory.publishers.items():
            begun = self._floors.get(publisher)
            if begun is None:
                self._numbers[publisher], self._floors[publisher] = number, floor
            elif begun <= number:
                self._floors[publisher] = min(begun, floor)
            ours[publisher] = number if begun is None else begun
        older = [kept for kept in memory.kept if kept.number <= ours.get(kept.publisher, 0)]
        self._kept.extendleft(reversed(older))
        self.size += sum([len(kept.payload) for kept in older])
        self._is_news = True
        self._forget_publishers()
