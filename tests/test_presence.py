"""Who is where, in other processes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsthread import presence
from wsthread.bus.backplane import Entry
from wsthread.entries import Malformed, Outgoing
from wsthread.presence import Change, Member, Presence


def travel(outgoing: Outgoing, publisher: str = "p") -> Entry:
    return Entry(publisher, 1, outgoing.kind, json.loads(json.dumps(outgoing.header)), outgoing.payload)


def come(group: str, id: str, info: Any = "x") -> Change:
    return Change(group, id, Member(id, info, 1.0))


def left(group: str, id: str) -> Change:
    return Change(group, id, None)


def ids(members: Iterable[Member]) -> list[str]:
    return sorted(member.id for member in members)


def test_coming_and_leaving() -> None:
    known = Presence()
    assert known.apply(travel(presence.told([come("a", "1"), come("b", "1"), come("a", "2")])), 0) == {"a", "b"}
    assert ids(known.members("a")) == ["1", "2"] and ids(known.members("b")) == ["1"] and known.members("c") == []
    assert known.apply(travel(presence.told([left("a", "1"), left("nowhere", "1")])), 0) == {"a", "nowhere"}
    assert known.apply(travel(presence.told([come("a", "2", {"name": "Ada"})])), 0) == {"a"}
    assert known.members("a") == [Member("2", {"name": "Ada"}, 1.0)]


def test_the_last_change_counts() -> None:
    known = Presence()
    known.apply(travel(presence.told([come("a", "1"), left("a", "1"), come("a", "1", "y"), come("b", "2"),
                                      left("b", "2")])), 0)
    assert known.members("a") == [Member("1", "y", 1.0)] and known.members("b") == []


def test_beginning_anew() -> None:
    known = Presence()
    known.apply(travel(presence.told([come("a", "1"), come("b", "1")])), 0)
    first, second = presence.told_anew([("a", Member(str(number), None, 1.0)) for number in range(600)])
    assert known.apply(travel(first), 0) == {"a", "b"} and known.apply(travel(second), 0) == {"a"}
    assert len(known.members("a")) == 600 and known.members("b") == []
    nobody, = presence.told_anew([])
    assert known.apply(travel(nobody), 0) == {"a"} and known.members("a") == []


def test_processes_are_apart() -> None:
    known = Presence()
    for publisher in "pq":
        known.apply(travel(presence.told([come("a", publisher)]), publisher), 0)
    assert ids(known.members("a")) == ["p", "q"]
    assert known.forget("p") == {"a"} and ids(known.members("a")) == ["q"] and known.forget("p") == set()


def test_silence() -> None:
    known = Presence()
    known.apply(travel(presence.told([come("a", "1")]), "p"), 0)
    known.apply(travel(presence.told([come("b", "2")]), "q"), 0)
    assert known.hear("p", 1, 10)
    assert known.forget_silent(5) == {"b"} and ids(known.members("a")) == ["1"] and known.members("b") == []


def test_a_sign_of_life_tells_what_is_missing() -> None:
    known = Presence()
    assert known.hear("p", 0, 0) and not known.hear("p", 1, 0)
    known.apply(travel(presence.told([come("a", "1")])), 0)
    assert known.hear("p", 1, 0) and not known.hear("p", 2, 0)


@pytest.mark.parametrize("header", [
    {}, {"in": [], "out": None}, {"in": {}, "out": []}, {"in": [["a"]], "out": []},
    {"in": [["a", 1, 1.0, None]], "out": []}, {"in": [["a", "1", "now", None]], "out": []},
    {"in": [], "out": [["a"]]}, {"in": [], "out": ["ab"]}])
def test_malformed(header: dict[str, Any]) -> None:
    known = Presence()
    known.apply(travel(presence.told([come("a", "1")])), 0)
    with pytest.raises(Malformed):
        known.apply(Entry("p", 1, "p", {**header, "reset": True}, b""), 0)
    assert ids(known.members("a")) == ["1"]


@pytest.mark.parametrize(("info", "error"), [(object(), TypeError), (float("inf"), ValueError)])
def test_info_has_json(info: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        presence.member_now("1", info)
    assert presence.member_now("1", {"a": (1, 2)}).info == {"a": [1, 2]}


@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("123"), st.booleans()))))
def test_any_changes(rounds: list[list[tuple[str, str, bool]]]) -> None:
    known = Presence()
    model: set[tuple[str, str]] = set()
    for changes in rounds:
        known.apply(travel(presence.told([
            (come if is_there else left)(group, id) for group, id, is_there in changes])), 0)
        for group, id, is_there in changes:
            (model.add if is_there else model.discard)((group, id))
        for group in "ab":
            assert ids(known.members(group)) == sorted(id for one, id in model if one == group)
