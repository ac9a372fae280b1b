"""The browser module wsthread.js, in Node.js; tests/test_chat.py has it in Chromium."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import Server, serve

SCRIPT = Path(__file__).parent / "node" / "resuming.mjs"
MODULE = Path(__file__).parent.parent / "wsthread" / "static" / "wsthread" / "wsthread.js"
Run = Callable[..., list[str]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("gthread", "apps.resuming:app") as running:
        yield running
        assert running.errors() == []


@pytest.fixture
def run(server: Server, need_program: Callable[[str], str]) -> Run:
    program = need_program("node")

    def run(*steps: str) -> list[str]:
        done = subprocess.run(
            [program, "--no-warnings", "--experimental-websocket", str(SCRIPT), server.url("", "ws"), *steps],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    return run


def test_the_module_is_served(server: Server) -> None:
    with urllib.request.urlopen(server.url("/_wsthread/wsthread.js")) as response:
        assert response.headers.get_content_type() in ("text/javascript", "application/javascript")
        assert response.read() == MODULE.read_bytes()
    assert "export declare class Socket" in server.get("/_wsthread/wsthread.d.ts")


@pytest.mark.slow
def test_messages(run: Run) -> None:
    assert run(
        "open /ws/1 chat.v1,chat.v2", "wait open", "send Hello", "wait message", "bytes 00ff0a", "wait message",
        "get /say/1/Hi", "wait message", "get /bytes/1", "wait message", "state", "finish", "wait close", "state",
        "send late",
    ) == [
        "open false chat.v2", "sent true", "message Hello", "message 00ff0a", "message Hi", "message ff0a3a",
        "state 1 0 false", "close 1000 -", "state 3 0 false", "dropped late", "sent false"]


@pytest.mark.slow
def test_what_was_missed_comes_after_a_reconnection(run: Run) -> None:
    lines = run(
        "open /ws/2", "wait open", "get /say/2/one", "wait message", "get /cut", "wait down", "get /say/2/two",
        "get /say/other/no", "get /say/2/three", "wait recovered", "get /say/2/four", "wait message 3")
    assert lines == [
        "open false -", "message one", "down 1006 true", "open true -", "message two", "message three",
        "recovered true", "message four"]


@pytest.mark.slow
def test_a_server_that_keeps_nothing(run: Run) -> None:
    assert run("open /forgetful/3", "wait open", "reconnect", "wait recovered", "get /say/3/x", "wait message") == [
        "open false -", "down 1006 true", "open true -", "recovered false", "message x"]


@pytest.mark.slow
def test_without_resuming(run: Run) -> None:
    """A browser's open event comes before the server has put it into its room; the echo comes behind that."""
    assert run("plain /ws/4", "wait open", "send in", "wait message", "get /say/4/x", "wait message", "reconnect",
               "wait open", "send again", "wait message", "get /say/4/y", "wait message") == [
        "open false -", "sent true", "message in", "message x", "down 1006 true", "open false -", "sent true",
        "message again", "message y"]


@pytest.mark.slow
@pytest.mark.parametrize("code", [1008, 4000])
def test_it_ends_when_the_server_says_so(run: Run, code: int) -> None:
    assert run("open /ws/5", "wait open", f"get /close/5/{code}", "wait close", "state") == [
        "open false -", f"close {code} told", "state 3 0 false"]


@pytest.mark.slow
@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013])
def test_it_comes_back_otherwise(run: Run, code: int) -> None:
    assert run("open /ws/6", "wait open", f"get /close/6/{code}", "wait recovered", "state") == [
        "open false -", f"down {code} true", "open true -", "recovered true", "state 1 0 false"]


@pytest.mark.slow
def test_codes(run: Run) -> None:
    assert run("codes") == ["codes 1001,1006,1011,1012,1013"]


@pytest.mark.slow
def test_what_waits_for_the_connection(run: Run) -> None:
    assert run("small /ws/7", "send abc", "send def", "send g", "state", "wait message 2", "state") == [
        "sent true", "sent true", "dropped g", "sent false", "state 0 6 false", "open false -", "message abc",
        "message def", "state 1 0 false"]


@pytest.mark.slow
def test_what_waits_when_it_ends(run: Run) -> None:
    assert run("open /ws/8", "send abc", "finish", "wait close", "state") == [
        "sent true", "dropped abc", "close 1000 -", "state 3 0 false"]


@pytest.mark.slow
def test_a_server_that_does_not_answer(run: Run) -> None:
    lines = run("impatient /missing", "wait down 3", "finish")
    assert lines == ["down 1006 true"] * 3


@pytest.mark.slow
def test_members(run: Run) -> None:
    assert run("members") == [
        'join {"id":"2","name":"Bob"}', 'leave {"id":"1","name":"Ada"}', 'change {"id":"2","name":"Bobby"}',
        'members 1 [{"id":"2","name":"Bobby"}]']


def test_django_finds_the_module() -> None:
    code = (
        "import django; from django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['django.contrib.staticfiles', 'wsthread'], STATIC_URL='/static/')\n"
        "django.setup(); from django.contrib.staticfiles.finders import find; print(find('wsthread/wsthread.js'))")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert Path(found.stdout.strip()) == MODULE
