"""What managers tell each other: there and back, and what nobody can read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wsthread import entries
from wsthread.bus.backplane import Entry, Gap, Health
from wsthread.entries import Addressed, Malformed, Outgoing
from wsthread.wire.protocol import Close

ALL, NOBODY, SOME = Addressed(None), Addressed(frozenset()), Addressed(frozenset("ab"), frozenset("c"))


def travel(outgoing: Outgoing) -> Entry:
    """Return what comes of it in another process, by way of JSON."""
    return Entry("p", 1, outgoing.kind, json.loads(json.dumps(outgoing.header)), outgoing.payload)


@pytest.mark.parametrize("payload", ["", "ü", b"", b"\xff\0", bytearray(b"x"), memoryview(b"y")])
@pytest.mark.parametrize("addressed", [ALL, SOME])
def test_messages(payload: Any, addressed: Addressed) -> None:
    entry = travel(entries.message(payload, addressed))
    came = entries.payload_of(entry)
    assert came == (payload if isinstance(payload, str) else bytes(payload)) and type(came) in (str, bytes)
    assert entry.kind == entries.MESSAGE and entries.addressed(entry) == addressed


@pytest.mark.parametrize("addressed", [ALL, SOME])
def test_closes(addressed: Addressed) -> None:
    entry = travel(entries.close(Close(4401, "logged out"), addressed))
    assert entries.close_of(entry) == (4401, "logged out") and entries.addressed(entry) == addressed


@pytest.mark.parametrize("data", [None, 0, "ü", [1, {"a": None}]])
def test_notices(data: Any) -> None:
    assert entries.data_of(travel(entries.notice(data))) == data


def nested(depth: int) -> list[Any]:
    data: list[Any] = []
    for _ in range(depth):
        data = [data]
    return data


@pytest.mark.parametrize(("data", "error"), [
    (object(), TypeError), ({1, 2}, TypeError), (float("nan"), ValueError), (nested(100_000), ValueError)])
def test_what_has_no_json(data: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        entries.notice(data)


@pytest.mark.parametrize(("addressed", "truth"), [(ALL, True), (SOME, True), (NOBODY, False)])
def test_whether_it_is_about_anybody(addressed: Addressed, truth: bool) -> None:
    assert bool(addressed) is truth


@pytest.mark.parametrize("header", [
    {"to": "a"}, {"to": [1]}, {"to": {"a": 1}}, {"to": 1}, {"to": None, "not": None}, {"to": None, "not": [None]}])
def test_malformed_groups(header: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        entries.addressed(Entry("p", 1, "m", header, b""))


def test_malformed_text() -> None:
    with pytest.raises(Malformed):
        entries.payload_of(Entry("p", 1, "m", {"text": True}, b"\xff"))


@pytest.mark.parametrize("header", [
    {}, {"code": 1000}, {"code": "1000", "reason": ""}, {"code": 1005, "reason": ""}, {"code": 1000, "reason": 1},
    {"code": 1000, "reason": "x" * 124}])
def test_malformed_closes(header: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        entries.close_of(Entry("p", 1, "c", header, b""))


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[" * 100_000])
def test_malformed_notices(payload: bytes) -> None:
    with pytest.raises(Malformed):
        entries.data_of(Entry("p", 1, "n", {}, payload))


@pytest.mark.parametrize(("groups", "named"), [
    (None, None), ("a", {"a"}), ([], set()), (["a", "b", "a"], {"a", "b"}), (iter("ab"), {"a", "b"})])
def test_named(groups: Any, named: set[str] | None) -> None:
    assert entries.named(groups) == named


@pytest.mark.parametrize("groups", [[1], [None], [b"a"]])
def test_what_is_no_name(groups: Any) -> None:
    with pytest.raises(TypeError, match="to takes group names, not"):
        entries.named(groups)


def test_the_contract_has_defaults() -> None:
    assert Health(True, 0.0).peers is None and Gap(None, None, "why").reason == "why"
