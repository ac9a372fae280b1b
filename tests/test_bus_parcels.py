"""Parcels: there and back, in pieces of any size, and what nobody can read."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsthread.bus.parcels import Kind, Parcel, Unpacker, Unreadable, pack

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5)
PARCELS = st.lists(st.builds(
    Parcel, st.sampled_from(Kind), st.dictionaries(st.text(), JSON, max_size=3), st.binary(max_size=300)))


@given(PARCELS, st.lists(st.integers(1, 50)))
def test_round_trip(parcels: list[Parcel], cuts: list[int]) -> None:
    data = b"".join(pack(*parcel) for parcel in parcels)
    unpacker = Unpacker()
    got: list[Parcel] = []
    for cut in cuts:
        got += unpacker.feed(data[:cut])
        data = data[cut:]
    got += unpacker.feed(data)
    assert got == parcels


def test_one_byte_at_a_time() -> None:
    data, unpacker = pack(Kind.ENTRY, {"name": "ü"}, b"payload") * 2, Unpacker()
    got = [list(unpacker.feed(data[index:index + 1])) for index in range(len(data))]
    assert sum(got, []) == [Parcel(Kind.ENTRY, {"name": "ü"}, b"payload")] * 2
    assert len(got[len(data) // 2 - 1]) == 1


@pytest.mark.parametrize("data", [
    struct.pack("!IBI", 7, 1, 2) + b"[]",
    struct.pack("!IBI", 7, 1, 2) + b"{]",
    struct.pack("!IBI", 7, 9, 2) + b"{}",
    struct.pack("!IBI", 7, 1, 3) + b"{} ",
    struct.pack("!IBI", 0, 1, 0),
    struct.pack("!IBI", 4, 1, 0),
    struct.pack("!IBI", (1 << 30) + 1, 1, 2) + b"{}",
    struct.pack("!IBI", 200_005, 1, 200_000) + b"[" * 200_000,
    b"GET / HTTP/1.1\r\n\r\n",
])
def test_unreadable(data: bytes) -> None:
    with pytest.raises(Unreadable):
        list(Unpacker().feed(data))


def test_what_came_before_is_read() -> None:
    got: list[Any] = []
    with pytest.raises(Unreadable):
        for parcel in Unpacker().feed(pack(Kind.HELLO, {"id": "1"}) + b"\xff" * 9):
            got.append(parcel)
    assert got == [Parcel(Kind.HELLO, {"id": "1"}, b"")]
