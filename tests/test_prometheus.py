"""A manager's numbers as Prometheus reads them."""

from __future__ import annotations

from typing import Any

import pytest
from peer import Connect, Recorder, connect, members
from prometheus_client import CollectorRegistry, generate_latest
from servers import wait_until

from wsthread import ListenableManager, Manager, Opcode
from wsthread.bus.backplane import Backplane, Health, Listener
from wsthread.manager import hub_of
from wsthread.prometheus import Collector

__all__ = ["connect"]

EMPTY = """\
# HELP wsthread_connections Open connections by state
# TYPE wsthread_connections gauge
wsthread_connections{state="open"} 0.0
wsthread_connections{state="closing"} 0.0
# HELP wsthread_queued_bytes Bytes that wait for slow peers
# TYPE wsthread_queued_bytes gauge
wsthread_queued_bytes 0.0
# HELP wsthread_inbox_bytes Bytes that wait for busy handlers
# TYPE wsthread_inbox_bytes gauge
wsthread_inbox_bytes 0.0
# HELP wsthread_lingering Handlers whose connections have ended
# TYPE wsthread_lingering gauge
wsthread_lingering 0.0
# HELP wsthread_accepted_total Connections accepted
# TYPE wsthread_accepted_total counter
wsthread_accepted_total 0.0
# HELP wsthread_greedy_total Connections cut because too much was held for them
# TYPE wsthread_greedy_total counter
wsthread_greedy_total 0.0
# HELP wsthread_slow_total Times that a peer became too slow for broadcasts
# TYPE wsthread_slow_total counter
wsthread_slow_total 0.0
# HELP wsthread_messages_received_total Messages received
# TYPE wsthread_messages_received_total counter
wsthread_messages_received_total 0.0
# HELP wsthread_messages_sent_total Messages sent
# TYPE wsthread_messages_sent_total counter
wsthread_messages_sent_total 0.0
# HELP wsthread_messages_dropped_total Broadcast messages given up for slow peers
# TYPE wsthread_messages_dropped_total counter
wsthread_messages_dropped_total 0.0
# HELP wsthread_bytes_received_total Bytes received, with frame headers
# TYPE wsthread_bytes_received_total counter
wsthread_bytes_received_total 0.0
# HELP wsthread_bytes_sent_total Bytes sent, with frame headers
# TYPE wsthread_bytes_sent_total counter
wsthread_bytes_sent_total 0.0
# HELP wsthread_closed_total Connections closed
# TYPE wsthread_closed_total counter
# HELP wsthread_refused_total Connections refused
# TYPE wsthread_refused_total counter
"""


def scrape(manager: Manager, **labels: str) -> str:
    """Return what Prometheus gets."""
    registry = CollectorRegistry()
    registry.register(Collector(manager, **labels))
    return generate_latest(registry).decode()


def test_without_connections() -> None:
    assert scrape(ListenableManager()) == EMPTY


@pytest.mark.parametrize(("labels", "first"), [({}, ""), ({"app": "chat"}, 'app="chat",')])
def test_with_connections(connect: Connect, labels: dict[str, str], first: str) -> None:
    recorder = Recorder()
    (conn, peer), (other, _), _ = members(recorder.manager, connect, 3)
    peer.send(Opcode.TEXT, b"hello")  # 11 bytes: header, mask, payload.
    wait_until(lambda: recorder.messages)
    conn.send("hi")  # 4 bytes.
    peer.close_frame(4000)  # 8 bytes, and 4 back.
    recorder.wait_closed()
    other.close(1001)  # 4 bytes.
    hub_of(recorder.manager).counters.refuse("403 Forbidden")
    lines = scrape(recorder.manager, **labels).splitlines()
    alone = "{" + first.rstrip(",") + "}" if first else ""
    for line in (
        f'wsthread_connections{{{first}state="open"}} 1.0',
        f'wsthread_connections{{{first}state="closing"}} 1.0',
        f"wsthread_queued_bytes{alone} 0.0",
        f"wsthread_accepted_total{alone} 3.0",
        f"wsthread_messages_received_total{alone} 1.0",
        f"wsthread_messages_sent_total{alone} 1.0",
        f"wsthread_bytes_received_total{alone} 19.0",
        f"wsthread_bytes_sent_total{alone} 12.0",
        f'wsthread_closed_total{{{first}code="4000"}} 1.0',
        f'wsthread_refused_total{{{first}status="403 Forbidden"}} 1.0',
    ):
        assert line in lines


class Line(Backplane):
    """A backplane that goes nowhere."""

    def start(self, name: str, listener: Listener, history: int = 0) -> None: ...

    def publish(self, kind: str, header: dict[str, Any], payload: bytes = b"") -> int:
        return 1

    def health(self) -> Health:
        return Health(False, 1.0, queued=3, published=5, gaps=2)

    def close(self, timeout: float) -> None: ...


def test_with_a_backplane() -> None:
    manager = ListenableManager(name="test_prometheus", backplane=Line())
    manager.broadcast("x")
    found = {line for line in scrape(manager).splitlines() if line.startswith("wsthread_backplane_")}
    assert found == {
        "wsthread_backplane_healthy 0.0", "wsthread_backplane_queued 3.0", "wsthread_backplane_published_total 5.0",
        "wsthread_backplane_received_total 0.0", "wsthread_backplane_dropped_total 0.0",
        "wsthread_backplane_resent_total 0.0", "wsthread_backplane_gaps_total 2.0"}
    manager.shutdown(timeout=1)
