"""wsthread publish, against a real Redis."""

from __future__ import annotations

import io
import sys

import pytest
from redis_servers import Listener, RedisServer, free_port

from wsthread import entries
from wsthread.commands import main


def test_messages(own_redis: RedisServer, name: str, listening: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ["publish", own_redis.url, "--name", name]
    assert main([*where, "hello"]) == 0
    assert main([*where, "--to", "a", "--to", "b", "hi"]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert main([*where, "-"]) == 0
    assert main([*where, "--notify", '{"logout": 42}']) == 0
    assert main([*where, "--to", "user:42", "--close", "4401", "logged out"]) == 0
    listening.wait(6)
    came = listening.delivered
    assert [one.kind for one in came] == ["m", "m", "m", "m", "n", "c"]
    assert [entries.payload_of(one) for one in came[:4]] == ["hello", "hi", "one", "two"]
    assert [entries.addressed(one).to for one in came[:2]] == [None, {"a", "b"}]
    assert entries.data_of(came[4]) == {"logout": 42}
    assert entries.close_of(came[5]) == (4401, "logged out")
    assert entries.addressed(came[5]).to == frozenset({"user:42"})


@pytest.mark.parametrize("arguments", [
    ["--notify", "{"], ["--close", "1005", "x"], ["--notify", "--close", "1000", "x"], ["--timeout", "0", "x"], []])
def test_wrong_arguments(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["publish", "redis://127.0.0.1:1", "--name", name, *arguments])
    assert caught.value.code == 2


def test_no_redis(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", f"redis://127.0.0.1:{free_port()}", "--name", name, "--timeout", "0.3", "x"]) == 3
    assert capsys.readouterr().err


def test_too_large(own_redis: RedisServer, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", own_redis.url, "--name", name, "x" * (2 << 20)]) == 1
    assert capsys.readouterr().err
