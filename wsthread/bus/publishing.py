"""What a publisher still owes a server, and what it would send again.

Pure: entries come in, batches go out, and the server's answers come back. The backplane's lock guards it.

A publisher numbers its entries 1, 2, 3... and the server keeps, in one step with the entries, the number of the last
one it has. So after whatever happened the server's answer tells how far it got:

* The answer is what was confirmed before or more: all up to there is confirmed. The last confirmed entries are kept.
* The answer is less: the server has lost entries that it had confirmed, in a restart or a failover. The entries after
  its answer wait again, as far as they were kept. If they were not, the next batch is *forced*: it tells the server to
  go on behind a hole, and readers see from the numbers how many entries are missing.
* There is no answer: nothing changes, and the next batch begins with the same entries. The server skips what it has.

An entry that is given up keeps its number, so that no reader takes another one for it:

* :data:`LOST` stands for entries that did not fit into the queue. Readers report them.
* :data:`WITHDRAWN` stands for one whose sender was told that it failed. Readers report nothing.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ..exceptions import BackplaneFull

LOST = "!"  #: The kind of an entry in place of one or more that readers have to report as missing.
WITHDRAWN = "-"  #: The kind of an entry in place of one that nobody misses.
ITEM_COST = 400  # Bytes of memory that an item takes besides its header and payload.


class Item(NamedTuple):
    """An entry of this publisher.

    Attributes:
        number: its own, or that of the last entry that it stands for.
        kind: one character.
        header: JSON.
        payload: bytes.
        published: when, in seconds on the monotonic clock.
        wall: when, in seconds since the epoch.
    """

    number: int
    kind: str
    header: bytes
    payload: bytes
    published: float
    wall: float

    @property
    def cost(self) -> int:
        """Bytes of memory."""
        return len(self.header) + len(self.payload) + ITEM_COST


class Batch(NamedTuple):
    """What to ask the server for.

    Attributes:
        base: the number that the server should have; if it has less, it adds nothing and tells what it has.
        is_forced: it shall add nevertheless, for what is missing cannot be sent again.
        items: what to add, in order; those that the server has are skipped. Empty to ask only.
    """

    base: int
    is_forced: bool
    items: list[Item]


class Bounds(NamedTuple):
    """How much a publisher holds.

    Attributes:
        waiting: entries that were never confirmed.
        waiting_size: bytes of memory of those.
        kept: entries that were confirmed last.
        kept_size: bytes of memory of those.
        kept_time: seconds for which they are kept; a stream reaches back no further.
    """

    waiting: int
    waiting_size: int
    kept: int
    kept_size: int
    kept_time: float


class Outgoing:
    """The entries of one publisher.

    Attributes:
        published: the number of the last one.
        confirmed: the number of the last one that the server is known to have, or that cannot be sent again.
        resent: how many were put into a batch that had been in one before.
        dropped: how many did not fit and were given up.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.published = 0
        self.confirmed = 0
        self.resent = 0
        self.dropped = 0
        self._bounds = bounds
        self._kept: deque[Item] = deque()
        self._kept_size = 0
        self._waiting: deque[Item] = deque()  # Those that were confirmed once, and then lost, come first.
        self._fresh = 0  # How many of them were never confirmed,
        self._fresh_size = 0  # and what those cost.
        self._reached = 0  # The highest number that was ever confirmed.
        self._sent = 0  # The highest number that was ever in a batch.
        self._is_forced = False

    @property
    def waiting(self) -> int:
        """How many entries wait to be sent."""
        return len(self._waiting)

    @property
    def is_due(self) -> bool:
        """Whether there is something to tell the server."""
        return bool(self._waiting) or self._is_forced

    def add(self, kind: str, header: bytes, payload: bytes, now: float, wall: float) -> int:
        """Take an entry and return its number.

        Raises:
            BackplaneFull: too much waits.
        """
        item = Item(self.published + 1, kind, header, payload, now, wall)
        bounds = self._bounds
        if self._fresh and (
                self._fresh >= bounds.waiting or self._fresh_size + item.cost > bounds.waiting_size):
            raise BackplaneFull(f"{self._fresh} messages, {self._fresh_size} bytes, wait for the other processes")
        self._append(item)
        return item.number

    def drop(self, now: float, wall: float) -> int:
        """Count an entry that does not fit, and return its number. Readers will know."""
        self.dropped += 1
        last = self._waiting[-1] if self._waiting else None
        mark = Item(self.published + 1, LOST, b"{}", b"", now, wall)
        if last is not None and last.kind == LOST and last.number > self._sent:  # One mark stands for all of them.
            self._waiting[-1] = mark
            self.published = mark.number
        else:
            self._append(mark)
        return mark.number

    def withdraw(self, number: int) -> None:
        """Give up an entry whose sender is told so. It may have arrived; if not, it never will."""
        for index, item in enumerate(self._waiting):
            if item.number == number:
                mark = Item(number, WITHDRAWN, b"{}", b"", item.published, item.wall)
                self._waiting[index] = mark
                if number > self._reached:
                    self._fresh_size -= item.cost - mark.cost

    def batch(self, count: int, size: int) -> Batch:
        """Return what to send next: at most so many entries, of so many bytes unless it is one."""
        items: list[Item] = []
        for item in self._waiting:
            size -= item.cost
            if len(items) == count or (items and size < 0):
                break
            items.append(item)
        self.resent += sum(item.number <= self._sent for item in items)
        if items:
            self._sent = max(self._sent, items[-1].number)
        return Batch(self.confirmed, self._is_forced, items)

    def confirm(self, have: int, now: float) -> None:
        """Note the number that the server has.

        Args:
            have: its answer to a batch.
            now: the time, in seconds on the monotonic clock.
        """
        have = min(have, self.published)
        if have < self.confirmed:
            while self._kept and self._kept[-1].number > have:
                item = self._kept.pop()
                self._kept_size -= item.cost
                self._waiting.appendleft(item)
            first = self._waiting[0].number if self._waiting else self.published + 1
            self.confirmed = max(have, min(self.confirmed, first - 1))
            self._is_forced = self.confirmed > have
            return
        self._is_forced = False
        while self._waiting and self._waiting[0].number <= have:
            item = self._waiting.popleft()
            if item.number > self._reached:
                self._fresh -= 1
                self._fresh_size -= item.cost
            self._kept.append(item)
            self._kept_size += item.cost
        self.confirmed = have
        self._reached = max(self._reached, have)
        self._trim(now)

    def _append(self, item: Item) -> None:
        self._waiting.append(item)
        self._fresh += 1
        self._fresh_size += item.cost
        self.published = item.number

    def _trim(self, now: float) -> None:
        bounds = self._bounds
        while self._kept and (
                len(self._kept) > bounds.kept or self._kept_size > bounds.kept_size
                or now - self._kept[0].published > bounds.kept_time):
            self._kept_size -= self._kept.popleft().cost
