"""The log line of each limit names the option, its value, and what went beyond it."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from peer import Connect, Recorder, connect
from wire import BINARY, CONTINUATION, RSV1, TEXT, client_frame, client_header, deflated

from wsthread import Deflate, ListenableManager, Upgrader, testing
from wsthread.wire.deflate import parse_extensions

__all__ = ["connect"]
AGREED = Deflate().negotiate(parse_extensions("permessage-deflate"))


@pytest.mark.parametrize("overflow", ["close", "drop_oldest", "drop_newest"])
def test_too_slow(overflow: Any, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """What waited before the policy dropped it."""
    recorder = Recorder(max_outbox_size=100_000, overflow=overflow, close_timeout=0.2)
    connect(recorder.manager)
    assert recorder.connected.wait(5)
    for _ in range(10_000):
        recorder.manager.broadcast(bytes(30_000))
        if "too slow" in caplog.text:
            break
    message, = [text for text in caplog.messages if "too slow" in text]
    words = re.search(
        r"too slow: (\d+) bytes waited when (\d+) more came, max_outbox_size is (\d+); overflow is (.*)$", message)
    assert words is not None
    assert 100_000 - 30_004 < int(words[1]) <= 100_000
    assert words.groups()[1:] == ("30004", "100000", repr(overflow))
    recorder.manager.shutdown(timeout=0.1)


@pytest.mark.parametrize(("data", "what"), [
    (client_header(BINARY, 1001), "frame of 1001"),
    (client_frame(TEXT, bytes(600), fin=False) + client_frame(CONTINUATION, bytes(401)), ""),
    (client_frame(BINARY, deflated(bytes(2000)), rsv=RSV1), "inflates to more"),
], ids=["announced", "in parts", "compressed"])
def test_too_big(data: bytes, what: str, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """It is the operator's limit and no fault of the protocol."""
    recorder = Recorder(max_message_size=1000, close_timeout=0.2)
    _, peer = connect(recorder.manager, agreement=AGREED)
    peer.socket.sendall(data)
    assert peer.read_close() == 1009
    message, = [text for text in caplog.messages if "max_message_size" in text]
    assert "max_message_size, which is 1000 bytes: " in message and what in message
    assert "protocol" not in message


def test_too_many(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(max_message_rate=2, close_timeout=0.2)
    _, peer = connect(recorder.manager)
    peer.socket.sendall(client_frame(TEXT, b"x") * 10)
    assert peer.read_close() == 1008
    assert "more than 2 messages per second (max_message_rate)" in caplog.text


@pytest.mark.parametrize(("manager", "upgrader", "headers", "words"), [
    ({"max_connections": 1}, {}, {}, "max_connections is 1"),
    ({"max_connections_per_address": 1}, {}, {}, "max_connections_per_address is 1"),
    ({}, {}, {"Origin": "https://evil.com"}, "option origins (Flask: WSTHREAD_ORIGINS)"),
    ({}, {"subprotocols": ["chat"], "require_subprotocol": True}, {}, "subprotocols and require_subprotocol"),
])
def test_refused(
    manager: dict[str, Any], upgrader: dict[str, Any], headers: dict[str, str], words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the log and in the answer."""
    app = Upgrader(ListenableManager(**manager), **upgrader)
    options: Any = {"environ_overrides": {"REMOTE_ADDR": "1.2.3.4"}}
    with caplog.at_level(logging.WARNING), testing.connect(app, subprotocols=["chat"], **options):
        with pytest.raises(testing.Refused) as info:
            testing.connect(app, headers=headers, **options)
    assert words in info.value.response.text
    message, = [text for text in caplog.messages if text.startswith("refused handshake")]
    assert words in message
