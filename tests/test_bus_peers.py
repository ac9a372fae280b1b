"""The queues for other processes, without these; with them: test_bus_local.py."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from wsthread.bus import peers
from wsthread.bus.parcels import Kind, Unpacker, pack


def read(sock: socket.socket) -> bytes:
    data = b""
    sock.settimeout(0.2)
    try:
        while True:
            data += sock.recv(1 << 20)
    except TimeoutError:
        return data


def test_what_is_left_out_is_told_before_the_next_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "QUEUE", 1 << 20)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        peer = peers.Peer(Path("1-a"), ours)
        entry = pack(Kind.ENTRY, {"name": "chat", "publisher": "p"}, bytes(100_000))
        for _ in range(100):
            peer.put(entry, "chat", "p")
        left_out = peer.left_out["chat", "p"]
        assert 50 < left_out < 100 and peer.size <= 1 << 20
        data = b""
        while peer.queue:
            data += read(theirs)
            peer.flush()
        peer.put(entry, "chat", "p")
        parcels = list(Unpacker().feed(data + read(theirs)))
    kinds = [parcel.kind for parcel in parcels]
    assert kinds == [Kind.ENTRY] * (100 - left_out) + [Kind.GAP, Kind.ENTRY]
    assert parcels[-2].header == {"name": "chat", "publisher": "p", "missing": left_out}


def test_a_large_entry_passes_an_empty_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "QUEUE", 1000)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        peer = peers.Peer(Path("1-a"), ours)
        assert peer.put(bytes(5_000_000), "chat", "p") and not peer.left_out
        assert not peer.put(b"x", "chat", "p") and peer.left_out.total() == 1


def test_a_broken_connection_holds_nothing() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        theirs.close()
        peer = peers.Peer(Path("1-a"), ours)
        assert not peer.put(b"x", "chat", "p") and peer.is_broken and peer.size == 0
