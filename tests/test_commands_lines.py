"""Lines of the input, from a pipe and from a terminal."""

from __future__ import annotations

import os
import pty
import select
import termios

import pytest

from wsthread.commands.lines import Lines, Prompt


def test_lines() -> None:
    reading, writing = os.pipe()
    lines = Lines(reading)
    assert lines.fileno() == reading
    for sent, found in [
        (b"one\ntw", ["one"]), (b"o\r\n\n", ["two", ""]), ("ä".encode()[:1], []), ("ä".encode()[1:] + b"\xff", []),
    ]:
        os.write(writing, sent)
        assert lines.read() == found
    os.close(writing)
    assert not lines.ended
    assert (lines.read(), lines.ended) == (["ä\ufffd"], True)
    assert (lines.read(), lines.ended) == ([], True)
    os.close(reading)


def test_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread asks, and the terminal is as before afterwards."""
    ours, theirs = pty.openpty()
    typed = iter(["one", "two"])

    def answer(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        before = termios.tcgetattr(terminal)
        with Prompt() as prompt:
            found = []
            while not prompt.lines.ended:
                assert select.select([prompt.lines], [], [], 10)[0]
                found += prompt.lines.read()
            changed = termios.tcgetattr(terminal)
            changed[3] &= ~termios.ECHO
            termios.tcsetattr(terminal, termios.TCSANOW, changed)
        assert found == ["one", "two"]
        assert termios.tcgetattr(terminal) == before
    os.close(ours)
    os.close(prompt.lines.fileno())
