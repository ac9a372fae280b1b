"""A visit goes as a page of the same host would."""

from __future__ import annotations

import pytest

from wsthread.doctor.visit import Visit


@pytest.mark.parametrize(("visit", "origin", "timeout"), [
    (Visit("ws://a:8000/ws", {}), "http://a:8000", 10.0), (Visit("wss://a/ws", {"timeout": 3}), "https://a", 3.0),
    (Visit("ws://a:80/ws", {}), "http://a", 10.0), (Visit("ws://a/", {}, "https://b"), "https://b", 10.0),
])
def test_visit(visit: Visit, origin: str, timeout: float) -> None:
    assert (visit.origin, visit.timeout) == (origin, timeout)
