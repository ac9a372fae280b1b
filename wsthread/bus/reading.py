"""How far a reader has come in a stream, and what that makes of each entry.

Pure: entries go in, and what has to be told comes out. Only the reader's thread uses it.

A reader has two measures. Its *place* is the id of the last entry it took: it says where to go on, and nothing else,
for the server's clock makes the ids. The *numbers* say, for each publisher, which entry it had last: a higher one is
new, one that is higher by more than one follows a gap, and any other one was here before.

A server that restarts or fails over may have lost entries that the reader has. It is seen from an entry that follows
another one than the reader's last, or from an end that lies before the reader's place. Then the reader begins again at
the start of the stream, and the numbers tell what is new. Publishers send again what the server has lost; see
:mod:`wsthread.bus.publishing`.

At its start a reader gets the numbers of all publishers at a place. So a publisher that it does not know has begun
later, with 1: if its first entry here is another one, those before are missing. There are two exceptions. Entries in
the stream after a late start, until the place where the numbers were taken, have unknown ones before them. And a server
that has lost its data has lost the numbers, too: a publisher that sends again tells how old its entries are, and those
from before the reader's start were never meant for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from .fields import START, Arrived, Id, id_before
from .publishing import LOST, WITHDRAWN

FORGET_AFTER = 24 * 3600.0  #: Seconds of silence of a publisher that the server has forgotten.
MOST_ENTRIES = 500  #: In one answer.
_MANY_BYTES = 1 << 20  # In one answer: the next one is for fewer entries.
_TRIMMED = "the stream did not reach back to where this process had read"
_NOT_STORED = "the server lost them, and their publisher had kept too few"
_NOT_TAKEN = "too many waited to leave at their publisher"


class Begin(NamedTuple):
    """The entries of a publisher come from now on, those behind this number."""

    publisher: str
    number: int


class Remember(NamedTuple):
    """An entry from before the start."""

    entry: Arrived


class Deliver(NamedTuple):
    """A new entry."""

    entry: Arrived


class Missed(NamedTuple):
    """Entries that will not come; None for what is not known."""

    publisher: str | None
    missing: int | None
    reason: str


class Skipped(NamedTuple):
    """An entry that is not delivered. ``fault`` says why nobody can read it; None when it was here before."""

    fault: str | None


Event: TypeAlias = Begin | Remember | Deliver | Missed | Skipped


class Reading:
    """A reader's place and numbers.

    Args:
        own: the publisher of this process, whose entries are not delivered.
        started: when the reader began, in seconds on the monotonic clock.

    Attributes:
        place: the id of the last entry that was taken.
        is_trimmed: entries are missing, and not all of them may be known; :meth:`settle` finds out.
    """

    def __init__(self, own: str, started: float) -> None:
        self.place = START
        self.is_trimmed = False
        self._own = own
        self._started = started
        self._numbers: dict[str, int] = {}
        self._heard: dict[str, float] = {}
        self._older: set[str] = set()  # Publishers that send again what is from before the start.
        self._is_catching_up = False  # It is not known what stood before the place.
        self._known_until: Id = START  # Where these were taken:
        self._known: Mapping[str, int] | None = None

    def begin(
        self, place: Id, history: Iterable[Arrived], end: Id, numbers: Mapping[str, int], now: float,
    ) -> list[Event]:
        """Begin.

        Args:
            place: entries behind it are delivered.
            history: those up to it, in order; not necessarily all.
            end: the last entry of the stream when the numbers were taken: the place, or one behind it.
            numbers: those of all publishers.
            now: the time, in seconds on the monotonic clock.
        """
        events: list[Event] = []
        for one in history:
            events += self._recall(one, now)
        self.place = place
        self._known, self._known_until = numbers, end
        self._is_catching_up = place != end
        if place == end:
            events += self._learn(now, has_begun=False)
        return events

    def take(self, one: Arrived, now: float) -> list[Event] | None:
        """Take the next entry; return None when the stream has to be read from :attr:`place` on again, its start."""
        events: list[Event] = []
        if self._known is not None and one.id > self._known_until:
            events += self._learn(now, has_begun=False)
        if one.before is not None and one.before != self.place and not self._is_catching_up:
            if one.before < self.place:
                self.restart()
                return None
            self.is_trimmed = True
            events.append(Missed(None, None, _TRIMMED))
        self.place = one.id
        if not one.publisher:
            return [*events, Skipped(one.fault)]
        return events + self._judge(one, now)

    def reach_end(self, end: Id) -> bool:
        """Note that nothing stands behind the place; tell whether the stream has to be read from its start again.

        Args:
            end: the last id that the server has given.
        """
        self._is_catching_up = False
        if end < self.place:
            self.restart()
            return True
        return False

    def restart(self) -> None:
        """Go back to the start of the stream."""
        self.place = START
        self._is_catching_up = True

    def settle(self, end: Id, numbers: Mapping[str, int], now: float) -> list[Event]:
        """Return what the numbers of all publishers tell of entries that are missing.

        Args:
            end: the last entry of the stream when they were taken. Nothing happens when this is not the place.
            numbers: theirs.
            now: the time, in seconds on the monotonic clock.
        """
        if end != self.place:
            return []
        self.is_trimmed = False
        self._known = numbers
        return self._learn(now, has_begun=True)

    def forget(self, numbers: Mapping[str, int], now: float) -> list[str]:
        """Forget publishers that have said nothing for long, and return them.

        The server has forgotten them, too, so they do not send anything again.

        Args:
            numbers: those of the publishers that the server knows.
            now: the time, in seconds on the monotonic clock.
        """
        gone = [
            one for one in self._numbers if one not in numbers and now - self._heard[one] > FORGET_AFTER]
        for one in gone:
            del self._numbers[one], self._heard[one]
            self._older.discard(one)
        return gone

    def _recall(self, one: Arrived, now: float) -> list[Event]:
        if one.fault is not None or one.publisher == self._own:
            return []
        events: list[Event] = []
        seen = self._numbers.get(one.publisher)
        if seen is not None and one.number <= seen:
            return []
        is_mark = one.kind in (LOST, WITHDRAWN)
        if seen is None or one.number > seen + 1 or one.kind == LOST:
            events.append(Begin(one.publisher, one.number - (not is_mark)))
        self._note(one.publisher, one.number, now)
        return events if is_mark else [*events, Remember(one)]

    def _judge(self, one: Arrived, now: float) -> list[Event]:
        """Compare an entry with the last number of its publisher."""
        publisher, number = one.publisher, one.number
        events: list[Event] = []
        if publisher == self._own:
            return events
        seen = self._numbers.get(publisher)
        if seen is None or publisher in self._older:
            if one.age > now - self._started:
                self._older.add(publisher)
                self._note(publisher, number, now)
                return [Begin(publisher, number), Skipped(None)]
            self._older.discard(publisher)
        if seen is None:
            seen = number - 1 if self._known is not None or one.is_forced else 0
            events.append(Begin(publisher, seen))
            if one.is_forced and number > 1 and self._known is None:
                events.append(Missed(publisher, None, _NOT_STORED))
        if number <= seen:
            return [*events, Skipped(None)]
        self._note(publisher, number, now)
        missing = number - seen - 1
        if one.kind == LOST:
            return [*events, Missed(publisher, missing + 1, _NOT_TAKEN)]
        if missing:
            events.append(Missed(publisher, missing, _NOT_STORED))
        if one.fault is not None:
            return [*events, Missed(publisher, 1, one.fault), Skipped(one.fault)]
        return events if one.kind == WITHDRAWN else [*events, Deliver(one)]

    def _learn(self, now: float, has_begun: bool) -> list[Event]:
        """Take over the numbers of the server; what they are ahead is missing, unless it was there before the start."""
        events: list[Event] = []
        numbers, self._known = self._known or {}, None
        for publisher, number in numbers.items():
            seen = self._numbers.get(publisher)
            if publisher == self._own or seen is not None and seen >= number:
                continue
            if has_begun:
                if seen is None:
                    seen = 0
                    events.append(Begin(publisher, seen))
                events.append(Missed(publisher, number - seen, _TRIMMED))
            else:
                events.append(Begin(publisher, number))
            self._note(publisher, number, now)
        return events

    def _note(self, publisher: str, number: int, now: float) -> None:
        self._numbers[publisher] = number
        self._heard[publisher] = now


def next_count(count: int, size: int, is_full: bool) -> int:
    """Return how many entries to ask for next.

    Args:
        count: how many were asked for.
        size: how many bytes came.
        is_full: whether so many entries came.
    """
    if size > _MANY_BYTES:
        return max(1, count // 2)
    return min(MOST_ENTRIES, count * 2) if is_full else count


def place_of(end: Id, now: int, elapsed: float) -> Id:
    """Return the place of a reader that learns only now where the stream ends.

    Args:
        end: that place.
        now: the server's time, in milliseconds.
        elapsed: seconds since the reader wanted to know.
    """
    return min(end, id_before((max(0, now - int(elapsed * 1000)), 0)))
