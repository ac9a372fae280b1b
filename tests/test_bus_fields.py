"""What stands in a stream, by whomever it was written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsthread.bus.fields import START, Arrived, Unreadable, decode, encode_header, format_id, id_before, parse_id

PUBLISHER = "0123456789abcdef"
FIELDS = {
    b"v": b"1", b"p": PUBLISHER.encode(), b"n": b"7", b"b": b"4-2", b"k": b"m", b"t": b"1500", b"h": b'{"to":null}',
    b"d": b"\xff\0"}


def read(changes: dict[bytes, bytes | None], max_size: int = 100) -> Arrived:
    fields = {**FIELDS, **changes}
    return decode(
        b"5-0", [one for name, value in fields.items() if value is not None for one in (name, value)], max_size)


def test_decode() -> None:
    assert read({}) == Arrived(
        (5, 0), (4, 2), PUBLISHER, 7, "m", {"to": None}, b"\xff\0", age=0.0, wall=1.5, is_forced=False, fault=None)
    assert read({b"a": b"250", b"f": b"1", b"new": b""})._asdict().items() >= {"age": 0.25, "is_forced": True}.items()
    assert read({b"h": None, b"d": None, b"t": None, b"b": b"x"})._asdict().items() >= {
        "payload": b"", "wall": 0.0, "before": None, "fault": None}.items()


#: Fields, and what is wrong with the entry. It has a publisher and a number nevertheless.
FAULTS: list[tuple[dict[bytes, bytes | None], str]] = [
    ({b"v": b"2"}, "version"), ({b"v": None}, "version"), ({b"k": b"mm"}, "kind"), ({b"k": b"\xe4"}, "kind"),
    ({b"k": None}, "kind"), ({b"h": b"{"}, "no JSON"), ({b"h": b"\xff"}, "no JSON"), ({b"h": b"[" * 90}, "no JSON"),
    ({b"h": b"[]"}, "no JSON object"), ({b"d": b"x" * 90}, "101 bytes, at most 100"),
]


@pytest.mark.parametrize(("changes", "fault"), FAULTS)
def test_faults(changes: dict[bytes, bytes | None], fault: str) -> None:
    found = read(changes)
    assert (found.publisher, found.number) == (PUBLISHER, 7)
    assert found.fault is not None and fault in found.fault


@pytest.mark.parametrize("changes", [
    {b"p": None}, {b"p": b"x" * 16}, {b"p": b""}, {b"n": None}, {b"n": b"0"}, {b"n": b"-1"}, {b"n": b"1" * 16}])
def test_nobodys(changes: dict[bytes, bytes | None]) -> None:
    found = read(changes)
    assert (found.id, found.before, found.publisher, found.number) == ((5, 0), (4, 2), "", 0)
    assert found.fault == "it has no publisher and number"


@given(st.lists(st.binary(max_size=20) | st.sampled_from([*FIELDS, *FIELDS.values()])))
def test_anything(fields: list[bytes]) -> None:
    assert decode(b"5-0", fields, 10).id == (5, 0)


def test_ids() -> None:
    assert (parse_id(b"12-3"), format_id((12, 3))) == ((12, 3), b"12-3")
    for text in (b"", b"5", b"5-", b"-5", b"a-b", b"5-5-5"):
        with pytest.raises(Unreadable):
            parse_id(text)
    assert [id_before(one) for one in ((5, 2), (5, 0), START)] == [(5, 1), (4, (1 << 64) - 1), START]


def test_encode_header() -> None:
    assert encode_header({"to": ["ä"], "t": 1}) == '{"to":["ä"],"t":1}'.encode()
    with pytest.raises(TypeError):
        encode_header({"to": object()})
