"""The ring: what it keeps, what it forgets, and whom it can give all that was missed."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsthread import history
from wsthread.history import History, Kept, Memory, Ring

NOBODY: frozenset[str] = frozenset()


def kept(publisher: str = "p", number: int = 1, at: float = 0.0, payload: bytes = b"1234567890", **fields: Any) -> Kept:
    return Kept(publisher, number, **{
        "to": None, "exclude": NOBODY, "without": NOBODY, "is_text": True, "payload": payload, "kept_at": at, **fields})


def ring(*numbers: int, publisher: str = "p", at: float = 0.0, **bounds: Any) -> Ring:
    """Return a ring that has these messages of a publisher, from the first on."""
    made = Ring(History(**bounds))
    made.begin(publisher, 0)
    add(made, *numbers, publisher=publisher, at=at)
    return made


def add(to: Ring, *numbers: int, publisher: str = "p", at: float = 0.0) -> None:
    for number in numbers:
        to.note(publisher, number)
        to.add(kept(publisher, number, at))


def numbers(of: Ring) -> list[int]:
    return [one.number for one in of.read(of.start, 1000) or []]


@pytest.mark.parametrize(("name", "value"), [
    ("count", 0), ("count", 1.5), ("count", True), ("count", None), ("seconds", 0), ("seconds", "1"), ("bytes", -1),
    ("bytes", 0.5), ("seconds", float("nan"))])
def test_bounds_that_make_no_sense(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is"):
        History(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("fields", "id", "groups", "expected"), [
    ({}, "1", (), True),
    ({"to": frozenset("ab")}, "1", "b", True),
    ({"to": frozenset("ab")}, "1", "c", False),
    ({"to": frozenset("ab")}, "1", (), False),
    ({"exclude": frozenset("c")}, "1", "bc", False),
    ({"to": frozenset("a"), "exclude": frozenset("c")}, "1", "ab", True),
    ({"without": frozenset("1")}, "1", (), False),
    ({"without": frozenset("1")}, "2", (), True),
])
def test_whom_a_message_is_for(fields: dict[str, Any], id: str, groups: str, expected: bool) -> None:
    assert kept(**fields).is_for(id, frozenset(groups)) is expected


@pytest.mark.parametrize(("bounds", "left"), [
    ({}, [1, 2, 3]), ({"count": 2}, [2, 3]), ({"bytes": 29}, [2, 3]), ({"bytes": 30}, [1, 2, 3]), ({"bytes": 9}, []),
    ({"seconds": 5.0}, [3]), ({"seconds": 6.0}, [2, 3])])
def test_bounds(bounds: dict[str, Any], left: list[int]) -> None:
    made = Ring(History(**bounds))
    for number, at in ((1, 0.0), (2, 4.0), (3, 10.0)):
        add(made, number, at=at)
    assert numbers(made) == left
    assert made.size == 10 * len(left)
    assert made.start + len(left) == made.end == 3


def test_time_passes_without_messages() -> None:
    made = ring(1, 2, seconds=5)
    made.expire(5.0)
    assert numbers(made) == [1, 2]
    made.expire(5.1)
    assert numbers(made) == []


@pytest.mark.parametrize(("seen", "covered"), [
    ({}, False), ({"p": 1}, False), ({"p": 2}, True), ({"p": 3}, True), ({"p": 9}, True), ({"p": 3, "q": 1}, False)])
def test_who_is_covered_when_the_first_two_are_gone(seen: dict[str, int], covered: bool) -> None:
    assert ring(1, 2, 3, count=1).covers(seen) is covered


def test_all_of_a_publisher_is_known_from_its_first_number_on() -> None:
    assert ring(1, 2).covers({})


def test_who_begins_later_has_a_floor() -> None:
    made = Ring(History())
    made.begin("p", 5)
    assert (made.seen, made.covers({"p": 4}), made.covers({"p": 5})) == ({"p": 5}, False, True)


def test_a_publisher_that_did_not_begin() -> None:
    made = Ring(History())
    add(made, 7)
    assert (made.covers({"p": 5}), made.covers({"p": 6})) == (False, True)


def test_a_hole_in_the_numbers() -> None:
    made = ring(1, 2)
    add(made, 5)
    assert (made.covers({"p": 3}), made.covers({"p": 4})) == (False, True)


def test_our_own_numbers_may_have_holes() -> None:
    made = Ring(History())
    for number in (2, 5):
        made.note_own("p", number)
        made.add(kept(number=number))
    assert made.covers({}) and made.seen == {"p": 5}


@pytest.mark.parametrize(("publisher", "covered"), [
    ("p", {2: False, 3: True}), (None, {2: False, 3: True}), ("q", {2: True})])
def test_a_gap(publisher: str | None, covered: dict[int, bool]) -> None:
    made = ring(1, 2)
    made.miss(publisher)
    assert {number: made.covers({"p": number}) for number in covered} == covered


def test_a_gap_is_over_when_the_next_one_comes() -> None:
    made = ring(1, 2)
    made.miss("p")
    add(made, 5)
    assert (made.covers({"p": 3}), made.covers({"p": 4})) == (False, True)


@pytest.mark.parametrize(("number", "left", "covered"), [
    (2, [1, 2], {0: True, 2: True}), (4, [1, 2], {2: False, 3: False, 4: True}),
    (0, [], {0: False, 2: False, 3: True})])
def test_a_publisher_begins_again(number: int, left: list[int], covered: dict[int, bool]) -> None:
    made = ring(1, 2)
    place = made.end
    made.begin("p", number)
    assert numbers(made) == left
    assert {seen: made.covers({"p": seen}) for seen in covered} == covered
    assert made.read(place, 1) == ([] if left else None)
    assert made.size == 10 * len(left)


def test_others_stay_when_a_publisher_begins_anew() -> None:
    made = ring(1, 2)
    made.begin("q", 0)
    add(made, 1, publisher="q")
    made.begin("p", 0)
    assert [(one.publisher, one.number) for one in made.read(made.start, 9) or []] == [("q", 1)]


def test_reading_in_pieces() -> None:
    made = ring(1, 2, 3, count=3)
    first = made.read(0, 2)
    assert first is not None and [one.number for one in first] == [1, 2]
    add(made, 4)
    assert made.read(0, 2) is None  # The first one is gone.
    rest = made.read(2, 5)
    assert rest is not None and [one.number for one in rest] == [3, 4]
    assert made.read(4, 5) == []


def test_a_publisher_that_has_gone_is_forgotten_with_its_messages() -> None:
    made = ring(1, seconds=5)
    made.forget("p", 1.0)
    made.forget("unknown", 1.0)
    made.expire(5.9)
    assert made.seen == {"p": 1} and made.number("p") == 1
    made.expire(6.1)
    assert made.seen == {} and made.number("p") is None
    assert not made.covers({"p": 1})


def test_a_publisher_that_has_come_back_is_not_forgotten() -> None:
    made = ring(1, seconds=5)
    made.forget("p", 1.0)
    made.begin("p", 1)
    made.expire(100.0)
    assert made.seen == {"p": 1}


def test_a_publisher_is_forgotten_while_its_messages_are_here() -> None:
    made = ring(1)
    for number in range(1000):
        made.note(f"q{number}", 1)
    assert made.number("p") is None
    made.expire(1e6)  # Its message leaves.
    assert numbers(made) == []


def test_publishers_have_a_bound() -> None:
    made = Ring(History())
    for number in range(1500):
        made.begin(f"p{number}", 1)
    assert len(made.seen) == history._MOST_PUBLISHERS
    assert "p1499" in made.seen and "p0" not in made.seen


def test_publishers_without_numbers_are_not_told() -> None:
    assert ring().seen == {}


@pytest.mark.parametrize(("bounds", "count", "at", "expected"), [
    ({"count": 4}, 0, 0.0, False), ({"count": 4}, 1, 0.0, True), ({"count": 8}, 1, 0.0, False),
    ({"bytes": 40}, 1, 0.0, True), ({"bytes": 80}, 1, 0.0, False), ({"seconds": 8.0}, 1, 2.0, True),
    ({"seconds": 8.0}, 0, 2.0, False)])
def test_when_clients_are_to_be_told_anew(bounds: dict[str, Any], count: int, at: float, expected: bool) -> None:
    made = ring(**bounds)
    made.note_told(0.0)
    add(made, *range(1, count + 1))
    assert made.is_to_be_told(at) is expected
    made.note_told(at)
    assert not made.is_to_be_told(at)


# A process that begins later


def taken_over(memory: Memory, *begun: tuple[str, int], then: tuple[int, ...] = ()) -> Ring:
    """Return the ring of a process for which publishers have begun, and some messages of p have come."""
    made = Ring(History())
    for publisher, number in begun:
        made.begin(publisher, number)
    add(made, *then)
    made.restore(Memory.decode(memory.encode(100.0), 5.0))
    return made


def test_another_process_takes_over() -> None:
    memory = ring(1, 2, 3, count=2, at=99.0).recall()
    assert memory == ({"p": (3, 1)}, [kept(number=2, at=99.0), kept(number=3, at=99.0)])
    made = taken_over(memory, ("p", 3))
    assert made.read(made.start, 9) == [kept(number=2, at=4.0), kept(number=3, at=4.0)]
    assert (made.covers({}), made.covers({"p": 1}), made.size) == (False, True, 20)


@pytest.mark.parametrize("message", [
    kept(to=frozenset("ab")), kept(exclude=frozenset("c")), kept(is_text=False, payload=b"\0"), kept(payload=b"")])
def test_all_of_a_message_is_taken_over(message: Kept) -> None:
    made = Ring(History())
    made.note("p", 1)
    made.add(message)
    assert taken_over(made.recall()).read(-1, 9) == [message._replace(kept_at=-95.0)]


@pytest.mark.parametrize(("begun", "then", "left", "covered"), [
    ((), (), [1, 2, 3], True),  # It has gone.
    ((("p", 3),), (4, 5), [1, 2, 3, 4, 5], True),
    ((("p", 2),), (3, 4), [1, 2, 3, 4], True),  # The other process has got some of what came here.
    ((("p", 4),), (5,), [1, 2, 3, 5], False),  # It had not got the last one.
])
def test_what_fits_together(
    begun: tuple[tuple[str, int], ...], then: tuple[int, ...], left: list[int], covered: bool,
) -> None:
    made = taken_over(ring(1, 2, 3).recall(), *begun, then=then)
    assert (numbers(made), made.covers({}), made.end) == (left, covered, len(then))


def test_a_reader_keeps_its_place() -> None:
    made = Ring(History())
    made.begin("p", 3)
    place = made.end
    made.restore(ring(1, 2, 3).recall())
    add(made, 4)
    rest = made.read(place, 9)
    assert rest is not None and [one.number for one in rest] == [4]


class Event(NamedTuple):
    """What happens to a ring."""

    publisher: str
    groups: str | None
    is_missed: bool


EVENTS = st.lists(st.builds(
    Event, st.sampled_from("pq"), st.sampled_from([None, "a", "b"]), st.sampled_from([False] * 9 + [True])),
    max_size=60)


@settings(max_examples=300, deadline=None)
@given(EVENTS, st.integers(0, 60), st.sampled_from(["a", "b", "ab"]), st.integers(1, 20), st.integers(1, 60))
def test_who_is_covered_gets_what_it_has_missed(
    events: list[Event], left_at: int, groups: str, count: int, size: int,
) -> None:
    made = Ring(History(count=count, bytes=size))
    last = {"p": 0, "q": 0}
    for publisher in last:
        made.begin(publisher, 0)
    seen: dict[str, int] = {}
    expected: list[tuple[str, int]] | None = []
    for index, event in enumerate(events):
        if index == left_at:
            seen = made.seen
            expected = []
        last[event.publisher] += 1
        if event.is_missed:
            if index >= left_at:
                expected = None
            continue
        made.note(event.publisher, last[event.publisher])
        made.add(kept(
            event.publisher, last[event.publisher], to=None if event.groups is None else frozenset(event.groups),
            payload=b"x" * (index % 5)))
        if expected is not None and (event.groups is None or event.groups in groups):
            expected.append((event.publisher, last[event.publisher]))
    if left_at >= len(events):
        seen, expected = made.seen, []
    # Gaps are told before the next message. The last ones may have none yet.
    for publisher, number in last.items():
        if made.number(publisher) != number:
            made.miss(publisher)
    if made.covers(seen):
        found = [
            (one.publisher, one.number) for one in made.read(made.start, 1000) or []
            if one.number > seen.get(one.publisher, 0) and one.is_for("1", frozenset(groups))]
        assert found == expected
