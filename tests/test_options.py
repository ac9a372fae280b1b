"""What a manager may be told, and what it refuses."""

from __future__ import annotations

import inspect
import re
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from wsthread import Deflate, ListenableManager, Manager, SimpleManager, Upgrader
from wsthread.options import Options

NUMBERS = [field.name for field in fields(Options) if field.name != "overflow"]
SIZES = ["max_message_size", "max_outbox_size"]
REQUIRED = ["max_outbox_size", "close_timeout"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, -0.5, "1", b"1", True, False, [], float("nan")])
def test_what_is_no_number_above_zero_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .* must be a number greater than 0"):
        Manager(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [
    (name, value) for name in NUMBERS for value in (1, 0.5, 10**9) if isinstance(value, int) or name not in SIZES])
def test_numbers(name: str, value: float) -> None:
    assert getattr(Manager(**{name: value}).options, name) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NUMBERS)
def test_none_means_no_limit_where_that_makes_sense(name: str) -> None:
    if name in REQUIRED:
        with pytest.raises(ValueError, match=f"^{name} must be a number"):
            Manager(**{name: None})  # type: ignore[arg-type]
    else:
        assert getattr(Manager(**{name: None}).options, name) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["close", "drop_oldest", "drop_newest", "block"])
def test_overflow_policies(value: str) -> None:
    assert Manager(overflow=value).options.overflow == value  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["", "drop", "Close", None, 1])
def test_other_overflow_policies_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="^overflow is .* close, drop_oldest, drop_newest, block"):
        Manager(overflow=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [
    {"shutdown_timeout": 0}, {"shutdown_timeout": -1}, {"shutdown_spread": -1}, {"shutdown_code": 1006},
    {"shutdown_code": 0},
])
def test_shutdown_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Manager(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["shutdown_code", "shutdown_timeout", "shutdown_spread"])
@pytest.mark.parametrize("value", ["1001", None, []])
def test_shutdown_options_are_numbers(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .* must be a number"):
        Manager(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [
    {"origins": 5}, {"origins": True}, {"origins": [b"https://example.com"]}, {"origins": [None]},
    {"subprotocols": "chat"}, {"compression": False}, {"compression": "deflate"},
])
def test_options_of_the_upgrader_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(options))} is "):
        Upgrader(Manager(), **options)


@pytest.mark.parametrize("options", [
    {"origins": None}, {"origins": "*"}, {"origins": re.compile("https://.*")}, {"origins": str.isascii},
    {"origins": ["https://a.example", re.compile("https://b.*")]}, {"origins": iter(["*"])}, {"subprotocols": []},
    {"compression": None}, {"compression": Deflate(level=1)},
])
def test_options_of_the_upgrader(options: dict[str, Any]) -> None:
    Upgrader(Manager(), **options)


def test_options_cannot_change() -> None:
    options = Manager().options
    with pytest.raises(FrozenInstanceError):
        options.max_connections = 1  # type: ignore[misc]


def test_all_managers_take_all_options() -> None:
    names = [field.name for field in fields(Options)]
    assert names == [name for name in inspect.signature(Manager).parameters if not name.startswith("shutdown_")]
    values = dict(zip(names, [2] * len(names)), overflow="block")
    for manager in Manager(**values), ListenableManager(**values), SimpleManager(print, **values):  # type: ignore
        assert manager.options == Options(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("changed", "shortest"), [
    ({}, 10.0),
    ({"read_timeout": 2.0}, 2.0),
    ({"write_timeout": 0.5}, 0.5),
    ({"close_timeout": 60.0}, 20.0),
    ({"close_timeout": 60.0, "ping_interval": None, "ping_timeout": None}, 30.0),
    ({"close_timeout": 60.0, "ping_interval": None, "ping_timeout": None, "write_timeout": None}, 60.0),
    ({"ping_timeout": 0.1}, 0.1),
])
def test_shortest_deadline(changed: dict[str, float], shortest: float) -> None:
    assert Manager(**changed).options.shortest_deadline() == shortest  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1e6, 10**20])
def test_sizes_are_numbers_of_bytes(size: object) -> None:
    with pytest.raises(ValueError, match="max_message_size"):
        Manager(max_message_size=size)  # type: ignore[arg-type]
