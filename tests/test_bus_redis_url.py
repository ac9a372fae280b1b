"""URLs of a Redis, and the names of keys."""

from __future__ import annotations

import pytest

from wsthread.bus.redis_url import Target, key_of, moved_to, parse

NOBODY = (None, None)
URLS = [
    ("redis://localhost", Target("redis://localhost:6379", [], None, NOBODY, "redis://localhost")),
    ("redis://:p%40ss@h:1/2?protocol=3", Target(
        "redis://:p%40ss@h:1/2?protocol=3", [], None, NOBODY, "redis://h:1/2")),
    ("rediss://u:secret@[::1]:1", Target("rediss://u:secret@[::1]:1", [], None, NOBODY, "rediss://[::1]:1")),
    ("valkeys://h", Target("rediss://h:6379", [], None, NOBODY, "valkeys://h")),
    ("redis://", Target("redis://localhost:6379", [], None, NOBODY, "redis:")),
    ("unix:///run/redis.sock?db=1", Target(
        "unix:///run/redis.sock?db=1", [], None, NOBODY, "unix:///run/redis.sock")),
    ("redis+sentinel://u:p@a:1,b/main/3?sentinel_password=s&x=1", Target(
        "redis://u:p@a:1/3?x=1", [("a", 1), ("b", 26379)], "main", (None, "s"), "redis+sentinel://a:1,b/main/3")),
    ("rediss+sentinel://a/my%20main", Target(
        "rediss://a:26379/", [("a", 26379)], "my main", NOBODY, "rediss+sentinel://a/my%20main")),
    ("redis+cluster://a,b:2", Target(
        "redis://a:6379", [("a", 6379), ("b", 2)], None, NOBODY, "redis+cluster://a,b:2")),
]


@pytest.mark.parametrize(("url", "expected"), URLS)
def test_parse(url: str, expected: Target) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(("url", "message"), [
    ("http://u:secret@h", "begins with redis://"), ("localhost:6379", "begins with redis://"),
    ("redis://u:secret@a,b", "several hosts"), ("redis+sentinel://u:secret@a", "service's name"),
    ("redis://u:secret@h:port", "hosts and ports"), ("redis://u:secret@[::1", "Invalid")])
def test_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(url)
    assert "secret" not in str(caught.value)


def test_keys_of_a_name_are_in_one_slot() -> None:
    assert key_of("chat") == "wsthread:{chat}"
    assert key_of("}ä{/") == "wsthread:{%7D%C3%A4%7B%2F}"


@pytest.mark.parametrize(("error", "expected"), [
    ("MOVED 5 10.0.0.1:7000", ("10.0.0.1", 7000)), ("5 ::1:7000", ("::1", 7000)), ("MOVED 5 :7000", ("", 7000)),
    ("WRONGPASS invalid", None)])
def test_moved_to(error: str, expected: tuple[str, int] | None) -> None:
    assert moved_to(error) == expected
