"""Compression for some clients and not for others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from wsthread import Deflate, ListenableManager, Upgrader, testing
from wsthread.options import UpgraderOptions

OFFER = {"Sec-WebSocket-Extensions": "permessage-deflate"}


def choose(environ: Mapping[str, Any]) -> Deflate | None:
    """Compress for nobody whose browser is named so, and with context takeover for one address."""
    if re.search("Broken/1", environ.get("HTTP_USER_AGENT", "")):
        return None
    return Deflate(server_context_takeover=environ["PATH_INFO"] == "/much")


@pytest.mark.parametrize(("agent", "path", "answer"), [
    ("Broken/1.2", "/", None),
    ("Fine/3", "/", "permessage-deflate; server_no_context_takeover; client_no_context_takeover"),
    ("Fine/3", "/much", "permessage-deflate; client_no_context_takeover"),
])
def test_per_client(agent: str, path: str, answer: str | None) -> None:
    upgrader = Upgrader(ListenableManager(), compression=choose)
    with testing.connect(upgrader, path, headers={**OFFER, "User-Agent": agent}) as ws:
        assert ws.response.headers.get("Sec-WebSocket-Extensions") == answer


def test_nobody_asks_for_a_client_that_offers_none() -> None:
    asked: list[object] = []
    with testing.connect(Upgrader(ListenableManager(), compression=asked.append)):
        assert not asked


@pytest.mark.parametrize("answer", [True, "permessage-deflate", Deflate])
def test_another_answer(answer: Any) -> None:
    """It is an error of the application, which its framework answers with 500."""
    upgrader = Upgrader(ListenableManager(), compression=lambda environ: answer)
    with pytest.raises(TypeError, match="^the function for compression returned "):
        testing.connect(upgrader, headers=OFFER)


async def choose_async(environ: Mapping[str, Any]) -> None:
    """Return what nobody awaits."""


@pytest.mark.parametrize("compression", [Deflate, choose_async, True, 6, "permessage-deflate", [Deflate()]])
def test_wrong_types(compression: Any) -> None:
    with pytest.raises(TypeError, match="^compression is a Deflate or None, not .*, or a function"):
        UpgraderOptions(compression=compression)
