"""What the messages of clients look like that come back."""

from __future__ import annotations

import pytest

from wsthread.wire.frames import Opcode
from wsthread.wire.messages import Payload, PreparedMessage
from wsthread.wire.resume import doubtful, head, mark, notice, parse_seen, split_seen, with_head


def test_what_goes_before_a_message() -> None:
    assert head("0123456789abcdef", 7) == b"0123456789abcdef:7\n"
    assert mark("0123456789abcdef", 7) == "0123456789abcdef:7"
    assert notice(seen={"p": 1}, recovered=True) == '{"seen":{"p":1},"recovered":true}'


@pytest.mark.parametrize(("payload", "expected"), [
    ("", "\n"), ("a", "\na"), (b"a", b"\na"), (bytearray(b"a"), b"\na"), (memoryview(b"a"), b"\na"),
    (1, 1)])  # Which is refused later.
def test_a_message_without_number(payload: Payload, expected: Payload) -> None:
    assert with_head(payload) == expected


@pytest.mark.parametrize(("payload", "expected"), [
    ("\xe9", (Opcode.TEXT, b"p:1\n\xc3\xa9")), (b"\xff", (Opcode.BINARY, b"p:1\n\xff"))])
def test_a_prepared_message_behind_its_head(payload: Payload, expected: tuple[Opcode, bytes]) -> None:
    assert PreparedMessage(payload).behind(b"p:1\n").content == expected


@pytest.mark.parametrize(("message", "expected"), [
    ("null", None), ("{}", {}), ('{"p": 1}', {"p": 1}), (b'{"p": 0}', {"p": 0}), ('{"p": 9007199254740991}', {
        "p": 9007199254740991})])
def test_the_first_message(message: str | bytes, expected: dict[str, int] | None) -> None:
    assert parse_seen(message) == expected


@pytest.mark.parametrize("message", [
    "", "[]", "1", '"p"', "{", b"\xff", '{"p": -1}', '{"p": 1.5}', '{"p": true}', '{"p": "1"}', '{"p": null}',
    '{"p": 9007199254740992}', "[" * 100_000, "{%s}" % ",".join(f'"{number}": 1' for number in range(10_001))])
def test_a_first_message_that_says_nothing(message: str | bytes) -> None:
    with pytest.raises(ValueError, match="^the first message is"):
        parse_seen(message)


def test_publishers_that_are_not_known() -> None:
    assert doubtful("p") == "?p"
    assert split_seen({"p": 1, "?q": 2}) == ({"p": 1}, {"q": 2})
