"""The answers that come word by word: what ends them, in process and in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from example_apps import EXAMPLES, hear, loaded, say
from servers import serve, wait_until
from test_chat import Page, browser

from wsthread import testing

__all__ = ["browser"]


@pytest.fixture
def tokens() -> Iterator[Any]:
    with loaded("tokens") as module:
        module.WORD_TIME = 0.001
        yield module


def read(ws: testing.WebSocket) -> tuple[list[str], str]:
    """Return the words of an answer and how it ended."""
    words = []
    while "token" in (event := hear(ws)):
        words.append(event["token"])
    return words, event["done"]


def test_answer(tokens: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with testing.connect(tokens.app, "/ws") as ws:
        for question in ("What is it?", "Why?"):
            say(ws, {"ask": question})
            words, end = read(ws)
            assert len(words) >= tokens.WORDS and words[-1] == "." and end == "end"
            assert set(words) <= set(tokens.TEXT)
            assert f"'{question}': the model wrote {len(words)} words" in capsys.readouterr().out


def test_stop(tokens: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tokens.WORDS = 1_000_000
    with testing.connect(tokens.app, "/ws") as ws:
        say(ws, {"ask": "What is it?"})
        hear(ws)
        say(ws, {"stop": True})
        assert read(ws)[1] == "stopped"
        tokens.WORDS = 5
        say(ws, {"stop": True})  # Too late: it means nothing any more.
        say(ws, {"ask": "And now?"})
        assert read(ws)[1] == "end"
    assert "'What is it?': the model wrote" in capsys.readouterr().out


@pytest.mark.parametrize("leave", [testing.WebSocket.close, testing.WebSocket.terminate])
def test_leave(tokens: Any, capsys: pytest.CaptureFixture[str], leave: Any) -> None:
    tokens.WORDS = 1_000_000
    ws = testing.connect(tokens.app, "/ws")
    say(ws, {"ask": "What is it?"})
    hear(ws)
    leave(ws)  # It returns when the handler has.
    assert "'What is it?': the model wrote" in capsys.readouterr().out


@pytest.mark.parametrize("junk", ["", "{", "null", "[]", '{"ask": 1}', b"\xff", '{"question": "?"}'], ids=repr)
def test_junk(tokens: Any, junk: str | bytes) -> None:
    tokens.WORDS = 1
    with testing.connect(tokens.app, "/ws") as ws:
        ws.send(junk)
        say(ws, {"ask": "?"})
        assert read(ws)[1] == "end"


@pytest.mark.slow
def test_page(browser: Any) -> None:
    with serve("gthread", "app:app", "--chdir", str(EXAMPLES / "tokens")) as server:
        page = Page(browser, server)
        page.wait("#status", "Connected")
        page.enter("#question", "What is <b>this</b>?")
        page.wait("#talk", "What is <b>this</b>?")
        page.wait(".writing", " ")
        page.find("#button").click()
        page.wait("#talk", "Stopped.")
        assert page.read("#button") == "Ask"
        wait_until(lambda: "'What is <b>this</b>?': the model wrote" in server.log())
        page.enter("#question", "Who reads this?")
        page.wait(".writing", " ")
        browser.refresh()
        wait_until(lambda: "'Who reads this?': the model wrote" in server.log())
    assert not server.errors()
