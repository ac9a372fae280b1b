"""Very many connections, one after the other: what they leave behind is nothing."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from clients import RawClient, frame
from servers import Server, serve, wait_until
from websockets.frames import Opcode

CYCLES = 10_000


class Held(NamedTuple):
    """What the serving process holds."""

    threads: int
    descriptors: int
    objects: int
    rss: int  # KiB.


def held(server: Server) -> Held:
    """Return what it holds once all connections are gone."""
    wait_until(lambda: json.loads(server.get("/stats"))["threads"] == 0)
    status = Path(f"/proc/{server.worker()}/status").read_text()
    rss = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert rss is not None
    objects = int(server.get("/objects"))
    # The connection of that request may be on its way out still; there is nothing to wait for but quiet.
    descriptors = [server.descriptors()]
    while len(descriptors) < 5 or len(set(descriptors[-5:])) > 1:
        time.sleep(0.05)
        descriptors.append(server.descriptors())
    return Held(server.threads(), descriptors[-1], objects, int(rss.group(1)))


def cycle(server: Server, number: int) -> None:
    """Connect, talk, and end in one of several ways, most of them impolite."""
    client = RawClient(server.port).open("/ws")
    client.send(frame(Opcode.TEXT, str(number)))
    assert client.recv_frame() == (Opcode.TEXT, str(number).encode())
    match number % 4:
        case 0:
            client.reset()
        case 1:
            client.send(frame(Opcode.BINARY, bytes(1000))[:500])
        case 2:
            client.send(frame(Opcode.CLOSE, b"\x03\xe8"))
            client.recv_rest()
    client.socket.close()


@pytest.mark.slow
def test_nothing_is_left_of_ten_thousand_connections() -> None:
    with serve("gthread", "apps.fleet:app") as server:
        for number in range(CYCLES // 10):
            cycle(server, number)
        before = held(server)
        for number in range(CYCLES):
            cycle(server, number)
        after = held(server)
        stats = json.loads(server.get("/stats"))
        print(f"before {before}, after {after}")
        assert stats["accepted"] == CYCLES + CYCLES // 10 == sum(stats["closed"].values())
        assert (after.threads, after.descriptors) == (before.threads, before.descriptors)
        assert abs(after.objects - before.objects) < 100
        assert after.rss - before.rss < 2048
        assert server.errors() == []
