"""The terminal: who gets in, what the shell sees, and how both end."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from example_apps import EXAMPLES, loaded
from servers import serve, wait_until
from test_chat import Page, browser

from wsthread import testing

__all__ = ["browser"]

TOKEN = "a-token_of-some-letters"
OFFER = ["terminal", f"token.{TOKEN}"]


@pytest.fixture
def terminal() -> Iterator[Any]:
    with loaded("terminal", TERMINAL_TOKEN=TOKEN, SHELL="/bin/sh") as module:
        yield module


def type_line(ws: testing.WebSocket, line: str) -> None:
    ws.send(f"{line}\r".encode())


def read_until(ws: testing.WebSocket, pattern: str) -> re.Match[bytes]:
    """Return the first match in what is printed from now on."""
    printed = b""
    while not (found := re.search(pattern.encode(), printed)):
        message = ws.receive()
        assert isinstance(message, bytes)
        printed += message
    return found


def shell_of(ws: testing.WebSocket) -> int:
    """Return the process id of the shell."""
    type_line(ws, "echo pid=$$")
    return int(read_until(ws, r"pid=(\d+)\r\n").group(1))


def is_alive(process: int) -> bool:
    return os.path.exists(f"/proc/{process}")


def test_typing(terminal: Any) -> None:
    with testing.connect(terminal.app, "/shell", subprotocols=OFFER) as ws:
        assert ws.subprotocol == "terminal"
        type_line(ws, "echo $((6 * 7)) $TERM; tty; cd; pwd")
        read_until(ws, r"42 dumb\r\n/dev/pts/\d+\r\n/")
        type_line(ws, "echo token=$TERMINAL_TOKEN.")
        read_until(ws, r"token=\.\r\n")
        type_line(ws, "grep SigIgn /proc/self/status")  # Of a program that the shell has started.
        ignored = int(read_until(ws, r"SigIgn:\s+([0-9a-f]+)\r\n").group(1), 16)
        assert not ignored & 1 << signal.SIGPIPE - 1  # Python ignores it. What else is ignored, it was started with.


def test_control_c(terminal: Any) -> None:
    with testing.connect(terminal.app, "/shell", subprotocols=OFFER) as ws:
        type_line(ws, "echo be''gin; sleep 100; echo status $?")
        read_until(ws, "begin")
        time.sleep(0.1)  # Until sleep runs; otherwise the shell only gets another prompt.
        ws.send(b"\x03")
        type_line(ws, "echo go''on")
        read_until(ws, "goon")


def test_size(terminal: Any) -> None:
    with testing.connect(terminal.app, "/shell", subprotocols=OFFER) as ws:
        for junk in ("", "[", "null", '{"rows": 0, "columns": 80}', '{"rows": 10, "columns": "80"}', "[" * 20_000):
            ws.send(junk)
        ws.send('{"rows": 33, "columns": 121}')
        type_line(ws, "stty size")
        read_until(ws, r"33 121\r\n")


@pytest.mark.parametrize("offer", [
    ["terminal"], ["terminal", "token."], ["terminal", "token.none"], ["terminal", TOKEN],
    ["terminal", f"token.{TOKEN}x"],
], ids=str)
def test_without_the_token(terminal: Any, offer: list[str]) -> None:
    with testing.connect(terminal.app, "/shell", subprotocols=offer) as ws:
        assert list(ws) == []
        assert ws.close_code == 4403


@pytest.mark.parametrize("options", [
    {"headers": {"Origin": "http://evil.example"}},
    {"headers": {"Origin": "http://evil.example"}, "base_url": "http://evil.example"},  # DNS rebinding.
    {"base_url": "http://evil.example"},
], ids=str)
def test_other_sites(terminal: Any, options: dict[str, Any]) -> None:
    with pytest.raises(testing.Refused) as caught:
        testing.connect(terminal.app, "/shell", subprotocols=OFFER, **options)
    assert caught.value.status == 403


def test_the_shell_ends(terminal: Any) -> None:
    with testing.connect(terminal.app, "/shell", subprotocols=OFFER) as ws:
        type_line(ws, "exit")
        list(ws)
        assert (ws.close_code, ws.close_reason) == (1000, "The shell has ended.")


@pytest.mark.parametrize("job", [
    "", "sleep 1000", "while :; do echo busy; done", "trap '' HUP; while :; do sleep 1; done"])
@pytest.mark.parametrize("leave", [testing.WebSocket.close, testing.WebSocket.terminate])
def test_the_client_leaves(terminal: Any, job: str, leave: Any) -> None:
    ws = testing.connect(terminal.app, "/shell", subprotocols=OFFER)
    process = shell_of(ws)
    assert is_alive(process)
    type_line(ws, job)
    leave(ws)
    assert not is_alive(process)


def test_more_is_typed_than_is_read(terminal: Any) -> None:
    ws = testing.connect(terminal.app, "/shell", subprotocols=OFFER)
    process = shell_of(ws)
    type_line(ws, "stty raw -echo; echo re''ady; sleep 1000")
    read_until(ws, "ready")
    for _ in range(10):
        ws.send(b"x" * 60_000)
    ws.close()
    assert not is_alive(process)


@pytest.mark.slow
def test_page(browser: Any, tmp_path: Path) -> None:
    directory = EXAMPLES / "terminal"
    env = {"SHELL": "/bin/sh", "HOME": str(tmp_path), "PS1": "$ "}
    options = ["--workers", "2", "--config", str(directory / "gunicorn.conf.py"), "--chdir", str(directory)]
    with serve("gthread", "app:app", *options, env=env) as server:
        address = server.wait_log(re.compile(r"The terminal is at (http://127\.0\.0\.1:\d+/#\S{43})")).group(1)
        page = Page(browser, server)
        page.wait("#status", "with the token")
        for _ in range(3):  # The token is that of all workers.
            browser.get("about:blank")
            browser.get(address)
            page.wait("#status", "Connected")
        page.enter("#keys", "echo '<b>'$((6 * 7)); printf '\\033[31mred\\033[0m ab\\bc 1\\r\\n'")
        page.wait("#screen", "\n<b>42\nred ac 1\n")
        page.enter("#keys", "stty size; echo $$ > pid")
        wait_until(lambda: re.search(r"\n\d\d \d\d+\n", page.read("#screen")))
        page.enter("#keys", "sleep 1000")
        page.find("button[value=c]").click()
        page.enter("#keys", "echo still $((1 + 1))")
        page.wait("#screen", "still 2")
        process = int((tmp_path / "pid").read_text())
        assert is_alive(process)
        browser.get("about:blank")
        wait_until(lambda: not is_alive(process))
    assert not server.errors()
