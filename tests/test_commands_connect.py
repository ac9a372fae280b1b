"""wsthread connect: in scripts, and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from canned import answering, page
from servers import serve_here, wait_until

from wsthread import Connection, ListenableManager, Opcode
from wsthread.commands import main


def answer(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    command, _, argument = str(payload).partition(" ")
    if command == "close":
        conn.close(int(argument), "as you say")
    elif command == "cut":
        conn.terminate()
    elif command == "binary":
        conn.send(b"\0\1")
    elif command != "silence":
        conn.send(payload)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_here(ListenableManager(on_message=answer), subprotocols=["chat"]) as port:
        yield f"ws://127.0.0.1:{port}/ws"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Return a function that calls the command with an input; it returns status, output and errors."""

    def run(text: str, *arguments: str) -> tuple[int, str, str]:
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        with os.fdopen(reading) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            status = main(["connect", *arguments])
        return status, *capfd.readouterr()

    return run


@pytest.mark.parametrize(("text", "options", "expected"), [
    ("hello\n", [], (0, "hello\n", "")),
    ("one\ntwo", [], (0, "one\ntwo\n", "")),
    ("", [], (0, "", "")),
    ("binary\n", [], (0, "binary: AAE=\n", "")),
    ("one\ntwo\nthree\n", ["--count", "2"], (0, "one\ntwo\n", "")),
    ("silence\n", ["--count", "1", "--timeout", "0.2"],
     (5, "", "1 messages are missing, and none came for 0.2 s\n")),
    ("close 1000\n", ["--count", "1"], (0, "", "")),
    ("close 4000\n", ["--count", "1"], (4, "", "closed with 4000 as you say\n")),
    ("cut\n", ["--count", "1"], (4, "", "closed with 1006\n")),
])
def test_script(url: str, call: Any, text: str, options: list[str], expected: tuple[int, str, str]) -> None:
    assert call(text, url, *options) == expected


def test_json(url: str, call: Any) -> None:
    status, output, errors = call("hello\nbinary\n", url, "--json", "--subprotocol", "chat", "--header", "A: b")
    events = [json.loads(line) for line in output.splitlines()]
    assert (status, errors) == (0, "")
    assert (events[0].pop("type"), events[0]["subprotocol"]) == ("open", "chat")
    assert events[1:] == [
        {"type": "text", "data": "hello"}, {"type": "binary", "base64": "AAE="},
        {"type": "close", "code": 1000, "reason": ""}]


def test_listen(call: Any) -> None:
    def connected(conn: Connection) -> None:
        conn.send("one")
        conn.send("two")
        conn.close()

    with serve_here(ListenableManager(on_connect=connected)) as port:
        assert call("never read\n", f"ws://127.0.0.1:{port}/ws", "--listen") == (0, "one\ntwo\n", "")


def test_many_lines_at_a_time(url: str, call: Any) -> None:
    """More than a read of the input takes."""
    text = "x" * 999 + "\n"
    assert call(text * 60, url) == (0, text * 60, "")


@pytest.mark.parametrize(("data", "status", "errors"), [
    (page("403 Forbidden", "not you\n"), 1, "403 Forbidden\nnot you\n"),
    (b"HTTP/1.0 501 Not Implemented\r\nServer: a\r\n\r\nno socket\n", 1, "501 Not Implemented\nno socket\n"),
    (page("301 Moved", "", "Location: /ws/"), 1, "301 Moved\nLocation: /ws/\n"),
    (b"SSH-2.0", 3, "the answer is not HTTP, it begins with b'SSH-2.0'\n"),
    (b"", 3, "the server closed the connection without an answer\n"),
])
def test_refused(call: Any, data: bytes, status: int, errors: str) -> None:
    """Also by a server of HTTP/1.0, whose text ends where the connection does."""
    with answering(data) as port:
        assert call("", f"ws://127.0.0.1:{port}/") == (status, "", errors)


def test_broken_server(call: Any) -> None:
    from wsthread.wire.handshake import encode_response, response_headers

    def accept(asked: bytes) -> bytes:
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", asked)
        assert key is not None
        return encode_response(response_headers(key[1].decode(), None)) + b"\xff\xff"

    with answering(accept, stay=True) as port:
        status, output, errors = call("", f"ws://127.0.0.1:{port}/", "--count", "1")
    assert (status, output) == (4, "") and "closed with 1006" in errors


@contextmanager
def ended_at_last(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let no process outlive its test, also when that fails."""
    try:
        yield
    finally:
        process.kill()
        process.wait(10)


def test_interrupted() -> None:
    """The server gets a Close."""
    ended: list[int | None] = []
    opened = threading.Event()
    manager = ListenableManager(
        on_connect=lambda conn: opened.set(), on_close=lambda conn: ended.append(conn.close_code))
    with serve_here(manager) as port:
        process = subprocess.Popen(
            [sys.executable, "-m", "wsthread", "connect", f"ws://127.0.0.1:{port}/ws", "--listen", "--json"],
            stdout=subprocess.PIPE)
        assert process.stdout is not None
        with ended_at_last(process), process.stdout as output:
            assert output.readline() and opened.wait(10)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        wait_until(lambda: ended)
    assert ended == [1000]


def test_input_from_a_file_and_none(url: str, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("one\ntwo\n")
    command = f"'{sys.executable}' -m wsthread connect '{url}'"
    for redirected, output in ((f"< '{tmp_path}/lines'", b"one\ntwo\n"), ("< /dev/null", b"")):
        assert subprocess.run(["sh", "-c", f"{command} {redirected}"], stdout=subprocess.PIPE).stdout == output
    result = subprocess.run(
        ["sh", "-c", f"{command} --count 1 --timeout 0.1 <&-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (result.returncode, result.stdout) == (5, b"")


def test_terminal(url: str) -> None:
    """Lines are edited, messages stand above the prompt, Ctrl-D closes."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "wsthread", "connect", url], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm", "INPUTRC": "/dev/null"}, start_new_session=True)
    os.close(theirs)
    seen = ""

    def wait_for(text: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 20
        while text not in seen:
            assert select.select([ours], [], [], max(deadline - time.monotonic(), 0))[0], seen
            seen += os.read(ours, 4096).decode()

    with ended_at_last(process):
        wait_for("> ")
        os.write(ours, b"helko\x7f\x7flo\r")
        wait_for("\x1b[Khello\r\n> ")
        os.write(ours, b"\x04")
        wait_for("closed with 1000")
        assert process.wait(30) == 0
    os.close(ours)
