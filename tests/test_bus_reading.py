"""What a reader makes of each entry, in each state of a stream."""

from __future__ import annotations

import pytest

from wsthread.bus.fields import START, Arrived, Id
from wsthread.bus.publishing import LOST, WITHDRAWN
from wsthread.bus.reading import FORGET_AFTER, Begin, Deliver, Event, Missed, Reading, Remember, next_count, place_of

A, B, OWN = "a" * 16, "b" * 16, "0" * 16


def entry(
    at: int, publisher: str, number: int, before: int | None = None, kind: str = "m", age: float = 0.0,
    is_forced: bool = False, fault: str | None = None,
) -> Arrived:
    """Return one at a place; before it stands the place before, unless told."""
    return Arrived(
        (at, 0), (at - 1 if before is None else before, 0), publisher, number, kind, age=age, is_forced=is_forced,
        fault=fault)


def brief(events: list[Event] | None) -> list[str] | None:
    """Return events in short: what happens, with which publisher and number."""
    if events is None:
        return None
    texts = []
    for one in events:
        if isinstance(one, (Deliver, Remember)):
            texts.append(f"{type(one).__name__} {one.entry.publisher[:1]}{one.entry.number}")
        elif isinstance(one, Begin):
            texts.append(f"Begin {one.publisher[:1]}{one.number}")
        elif isinstance(one, Missed):
            texts.append(f"Missed {(one.publisher or '?')[:1]}{'?' if one.missing is None else one.missing}")
        else:
            texts.append("Skipped" if one.fault is None else f"Skipped: {one.fault}")
    return texts


def reading(numbers: dict[str, int] | None = None, place: int = 10) -> Reading:
    """Return one that has begun at a place, with the publisher A at number 3."""
    one = Reading(OWN, 100.0)
    one.begin((place, 0), [], (place, 0), {A: 3} if numbers is None else numbers, 100.0)
    return one


#: The next entry after the place 10, with A at 3; what that makes.
NEXT: list[tuple[Arrived, list[str] | None]] = [
    (entry(11, A, 4), ["Deliver a4"]),
    (entry(11, A, 3), ["Skipped"]),
    (entry(11, A, 6), ["Missed a2", "Deliver a6"]),
    (entry(11, OWN, 1), []),
    (entry(11, B, 1), ["Begin b0", "Deliver b1"]),
    (entry(11, B, 3), ["Begin b0", "Missed b2", "Deliver b3"]),
    (entry(11, B, 3, is_forced=True), ["Begin b2", "Missed b?", "Deliver b3"]),
    (entry(11, B, 1, is_forced=True), ["Begin b0", "Deliver b1"]),
    (entry(11, B, 3, age=5.0), ["Begin b3", "Skipped"]),  # From before the start.
    (entry(11, B, 3, age=1.0), ["Begin b0", "Missed b2", "Deliver b3"]),
    (entry(11, A, 4, kind=WITHDRAWN), []),
    (entry(11, A, 5, kind=WITHDRAWN), ["Missed a1"]),
    (entry(11, A, 5, kind=LOST), ["Missed a2"]),
    (entry(11, A, 4, fault="bad"), ["Missed a1", "Skipped: bad"]),
    (entry(11, "", 0, fault="bad"), ["Skipped: bad"]),
    (entry(15, A, 6, before=14), ["Missed ??", "Missed a2", "Deliver a6"]),
    (entry(11, A, 4, before=9), None),  # Another stream than before.
    (Arrived((11, 0), None, A, 4), ["Deliver a4"]),
]


@pytest.mark.parametrize(("one", "expected"), NEXT)
def test_next(one: Arrived, expected: list[str] | None) -> None:
    reader = reading()
    assert brief(reader.take(one, 102.0)) == expected
    assert reader.place == (START if expected is None else one.id)


def test_a_lost_stream_is_read_again() -> None:
    """What was here before is not delivered twice, and what comes late is."""
    reader = reading()
    assert brief(reader.take(entry(11, A, 4), 100.0)) == ["Deliver a4"]
    assert reader.take(entry(12, A, 5, before=5), 100.0) is None
    assert [brief(reader.take(one, 100.0)) for one in (
        entry(4, A, 3, before=3), entry(5, A, 4), entry(12, A, 5, before=5))] == [
            ["Skipped"], ["Skipped"], ["Deliver a5"]]
    assert not reader.reach_end((12, 0))
    assert brief(reader.take(entry(20, A, 6, before=19), 100.0)) == ["Missed ??", "Deliver a6"]


def test_the_end_tells_of_a_lost_stream() -> None:
    reader = reading()
    assert not reader.reach_end((10, 0))
    assert not reader.reach_end((11, 0))  # Something has come meanwhile.
    assert reader.reach_end((9, 0))
    assert reader.place == START
    assert brief(reader.take(entry(3, A, 4, before=2), 100.0)) == ["Deliver a4"]


def test_history() -> None:
    reader = Reading(OWN, 100.0)
    history = [
        entry(1, A, 5), entry(2, OWN, 1), entry(3, A, 6), entry(4, A, 6), entry(5, B, 1, fault="bad"), entry(6, A, 8),
        entry(7, B, 2, kind=LOST), entry(8, B, 3), entry(9, B, 4, kind=WITHDRAWN), entry(10, B, 5)]
    events = reader.begin((10, 0), history, (10, 0), {A: 9, B: 5, OWN: 1, "c" * 16: 2}, 100.0)
    assert brief(events) == [
        "Begin a4", "Remember a5", "Remember a6", "Begin a7", "Remember a8", "Begin b2", "Remember b3", "Remember b5",
        "Begin a9", "Begin c2"]
    assert brief(reader.take(entry(11, A, 10), 100.0)) == ["Deliver a10"]


def test_late_start() -> None:
    """What stands between the start and the moment when the server first answered is delivered."""
    reader = Reading(OWN, 100.0)
    assert brief(reader.begin((10, 0), [entry(9, A, 5)], (13, 0), {A: 7, B: 4, "c" * 16: 2}, 105.0)) == [
        "Begin a4", "Remember a5"]
    assert [brief(reader.take(one, 105.0)) for one in (entry(12, A, 7, before=11), entry(13, B, 4))] == [
        ["Missed a1", "Deliver a7"], ["Begin b3", "Deliver b4"]]
    assert brief(reader.take(entry(14, "c" * 16, 3), 105.0)) == ["Begin c2", "Deliver c3"]


def test_what_is_older_than_the_reader() -> None:
    """A publisher that sends again all that it kept does not tell a new process of what was before it."""
    reader = reading()
    assert [brief(reader.take(entry(10 + number, B, number, age=age), 102.0)) for number, age in (
        (1, 9.0), (2, 5.0), (3, 1.0), (4, 5.0))] == [
            ["Begin b1", "Skipped"], ["Begin b2", "Skipped"], ["Deliver b3"], ["Deliver b4"]]
    assert brief(reader.take(entry(15, A, 4, age=5.0), 102.0)) == ["Deliver a4"]  # It was about to come.


def test_settle() -> None:
    """The numbers of all publishers tell what was trimmed of those that say nothing more."""
    reader = reading()
    assert brief(reader.take(entry(15, A, 5, before=14), 100.0)) == ["Missed ??", "Missed a1", "Deliver a5"]
    assert reader.is_trimmed
    numbers = {A: 7, B: 2, OWN: 5}
    assert reader.settle((16, 0), numbers, 100.0) == []  # They tell of entries that are still to come.
    assert reader.is_trimmed
    assert brief(reader.settle((15, 0), numbers, 100.0)) == ["Missed a2", "Begin b0", "Missed b2"]
    assert not reader.is_trimmed
    assert reader.settle((15, 0), numbers, 100.0) == []


def test_forget() -> None:
    reader = reading()
    reader.take(entry(11, B, 1), 100.0)
    later = 101.0 + FORGET_AFTER
    assert reader.forget({}, 101.0) == []
    assert reader.forget({A: 3}, later) == [B]
    assert reader.forget({A: 3}, later) == []
    assert brief(reader.take(entry(12, A, 4), later)) == ["Deliver a4"]


@pytest.mark.parametrize(("count", "size", "is_full", "expected"), [
    (16, 100, True, 32), (16, 100, False, 16), (400, 100, True, 500), (16, 5 << 20, True, 8), (1, 5 << 20, True, 1)])
def test_next_count(count: int, size: int, is_full: bool, expected: int) -> None:
    assert next_count(count, size, is_full) == expected


@pytest.mark.parametrize(("end", "now", "elapsed", "expected"), [
    ((9000, 5), 10_000, 0.5, (9000, 5)), ((9900, 5), 10_000, 0.5, (9499, (1 << 64) - 1)), ((5, 0), 10, 5.0, START)])
def test_place_of(end: Id, now: int, elapsed: float, expected: Id) -> None:
    assert place_of(end, now, elapsed) == expected
