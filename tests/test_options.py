"""What a manager may be told, and what it refuses; and that all who tell it follow from the definition."""

from __future__ import annotations

import inspect
import os
import pydoc
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from wsthread import CloseCode, Deflate, ListenableManager, Manager, SimpleManager, Upgrader
from wsthread.bus.backplane import Backplane
from wsthread.handlers import ListenableOptions, SimpleOptions
from wsthread.manager import ManagerOptions
from wsthread.options import Meaning, Options, UpgraderOptions, default_text, option, takes
from wsthread.upgrader import UpgraderArguments

ROOT = Path(__file__).parent.parent
SHUTDOWN = ["shutdown_code", "shutdown_timeout", "shutdown_spread"]  # Their values have tests of their own.
OTHERS = ["overflow", "ipv6_prefix", "name", "backplane", "history", *SHUTDOWN]
NUMBERS = [field.name for field in fields(Options) if field.name not in OTHERS]
SIZES = ["max_message_size", "max_outbox_size", "max_inbox_size", "max_held_size", "max_control_rate"]
REQUIRED = ["max_outbox_size", "max_inbox_size", "close_timeout"]


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
        with pytest.raises(ValueError, match=f"^{name} is None, it must be a number"):
            Manager(**{name: None})  # type: ignore[arg-type]
    else:
        assert getattr(Manager(**{name: None}).options, name) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, "chat", "Chat 2 \u00fc", "x" * 100])
def test_names(value: str | None) -> None:
    assert Manager(name=value).options.name == value


@pytest.mark.parametrize("value", ["", "x" * 101, "a\nb", 1, b"chat"])
def test_other_names_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="^name is .* must be a str of 1 to 100 printable characters"):
        Manager(name=value)


@pytest.mark.parametrize("value", ["redis", "redis://localhost", "", 1, Backplane])
def test_other_backplanes_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match='^backplane is .* must be a Backplane such as .*, or "local"'):
        Manager(backplane=value)


@pytest.mark.parametrize("value", ["close", "drop_oldest", "drop_newest", "block"])
def test_overflow_policies(value: str) -> None:
    assert Manager(overflow=value).options.overflow == value  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["", "drop", "Close", None, 1])
def test_other_overflow_policies_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="^overflow is .* close, drop_oldest, drop_newest, block"):
        Manager(overflow=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, 129, 64.0, "64", None, True, []])
def test_ipv6_prefix_is_checked(value: Any) -> None:
    with pytest.raises(ValueError, match="^ipv6_prefix is .* must be a whole number from 1 to 128$"):
        Manager(ipv6_prefix=value)


@pytest.mark.parametrize("value", [1, 48, 128])
def test_ipv6_prefix(value: int) -> None:
    assert Manager(ipv6_prefix=value).options.ipv6_prefix == value


@pytest.mark.parametrize("options", [
    {"shutdown_timeout": 0}, {"shutdown_timeout": -1}, {"shutdown_spread": -1}, {"shutdown_code": 1006},
    {"shutdown_code": 0}, {"shutdown_code": 1005}, {"shutdown_code": 1001.0}, {"shutdown_timeout": float("nan")},
    {"shutdown_timeout": True},
])
def test_shutdown_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))} is "):
        Manager(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [
    ("shutdown_code", 1012), ("shutdown_code", 4999), ("shutdown_timeout", 0.5), ("shutdown_spread", 0)])
def test_shutdown_options(name: str, value: float) -> None:
    assert getattr(Manager(**{name: value}).options, name) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SHUTDOWN)
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


ORIGINS = "https://a.example", re.compile("https://b.*")


@pytest.mark.parametrize(("name", "value", "kept"), [
    ("origins", None, None), ("origins", "*", "*"), ("origins", ORIGINS[1], ORIGINS[1]),
    ("origins", str.isascii, str.isascii), ("origins", list(ORIGINS), ORIGINS), ("origins", iter("*"), ("*",)),
    ("subprotocols", [], ()), ("subprotocols", iter(["chat", "soap"]), ("chat", "soap")),
    ("compression", None, None), ("compression", Deflate(level=1), Deflate(level=1)),
])
def test_options_of_the_upgrader(name: str, value: Any, kept: object) -> None:
    """Iterators become tuples: the options are for many handshakes."""
    options = UpgraderOptions(**{name: value})
    assert vars(options) == {
        "origins": None, "subprotocols": (), "require_subprotocol": False, "compression": Deflate(), name: kept}
    Upgrader(Manager(), **vars(options))


def test_options_cannot_change() -> None:
    options = Manager().options
    with pytest.raises(FrozenInstanceError):
        options.max_connections = 1  # type: ignore[misc]


def test_all_managers_take_all_options() -> None:
    names = [field.name for field in fields(Options)]
    assert names == [name for name in inspect.signature(Manager).parameters if not name.startswith("on_")]
    values = dict(
        zip(names, [2] * len(names)), overflow="block", shutdown_code=1012, name="chat", backplane=None,
        history=None)
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


# What follows from the definitions

CONSTRUCTORS: list[tuple[Callable[..., object], type[Any], list[str]]] = [
    (Manager, ManagerOptions, []),
    (ListenableManager, ListenableOptions, []),
    (SimpleManager, SimpleOptions, ["handler"]),
    (Upgrader, UpgraderArguments, ["manager"]),
]


@pytest.mark.parametrize(("constructor", "definition", "positional"), CONSTRUCTORS)
def test_signature(constructor: Callable[..., object], definition: type[Any], positional: list[str]) -> None:
    parameters = inspect.signature(constructor).parameters
    assert dict(parameters) == dict(inspect.signature(definition).parameters)
    assert [name for name, one in parameters.items() if one.kind is not one.KEYWORD_ONLY] == positional
    for field in fields(definition):
        assert parameters[field.name].annotation == field.type
        default = inspect.Parameter.empty if field.name in positional else field.default
        assert parameters[field.name].default == default


@pytest.mark.parametrize(("constructor", "definition", "positional"), CONSTRUCTORS)
def test_unknown_keyword(constructor: Callable[..., object], definition: type[Any], positional: list[str]) -> None:
    with pytest.raises(TypeError, match="'ping_intervall'"):
        constructor(*[Manager()] * len(positional), ping_intervall=1)


@pytest.mark.parametrize(("constructor", "definition", "positional"), CONSTRUCTORS)
def test_help(constructor: Callable[..., object], definition: type[Any], positional: list[str]) -> None:
    """It has a paragraph for each argument, its own before those of its base."""
    text = " ".join(pydoc.plain(pydoc.render_doc(constructor)).replace("|", "").split())
    names = [field.name for field in fields(definition)]
    for field in fields(definition):
        meaning = Meaning.of(field)
        assert f"{field.name}: {meaning.help} " in text
        assert meaning.unit in text and default_text(field) in text and (meaning.none or "") in text
    found = [name for name in re.findall(r"\b(\w+): [A-Z]", text[text.index("Args:"):]) if name in names]
    assert found == list(inspect.signature(constructor).parameters)
    assert "**options" not in text[:text.index("Raises:")]


@dataclass(frozen=True, kw_only=True)
class Example(Options):
    colour: str = option("red", "The colour of it.")
    size: int | None = option(3, "The size of it.", unit="bytes", none="no size")


def test_takes() -> None:
    """The line about options becomes paragraphs, and everything else stays, for a definition of anybody."""
    @takes(Example)
    def init(self: object, **options: Any) -> None:
        """Make one.

        Args:
            **options: as in the definition.

        Raises:
            TypeError: an unknown option.
        """

    document = inspect.getdoc(init)
    assert document is not None
    lines = document.splitlines()
    assert lines[:5] == [
        "Make one.", "", "Args:", '    colour: The colour of it. Default: "red".',
        "    size: The size of it. Unit: bytes. Default: 3. None: no size."]
    assert lines[5].startswith("    max_message_size: ") and lines[-3:] == [
        "", "Raises:", "    TypeError: an unknown option."]
    assert max(map(len, lines)) <= 100
    assert list(inspect.signature(init).parameters)[:3] == ["self", "colour", "size"]


def test_takes_without_docstrings() -> None:
    """As under python -OO."""
    def init(self: object, **options: Any) -> None:
        pass

    assert takes(Options)(init).__doc__ is None


@pytest.mark.parametrize("definition", [ListenableOptions, SimpleOptions, UpgraderArguments])
def test_every_argument_has_a_meaning(definition: type[Any]) -> None:
    for field in fields(definition):
        meaning = Meaning.of(field)
        assert meaning.help[0].isupper() and meaning.help.endswith(".")
        assert (meaning.none is not None) == ("| None" in str(field.type) or field.name == "origins")
        assert bool(meaning.unit) == (re.search("int|float", str(field.type)) is not None)


@pytest.mark.parametrize(("default", "text"), [
    (None, "None"), ("close", '"close"'), ((), "()"), (10_000, "10000"), (30.0, "30"), (0.25, "0.25"), (0.0, "0"),
    (CloseCode.GOING_AWAY, "1001"), (1 << 20, "1048576 (1 MiB)"), ((1 << 20) + 1, "1048577"), (Deflate(), "Deflate()"),
])
def test_default_text(default: object, text: str) -> None:
    @dataclass
    class One:
        value: object = option(default, "A value.")

    assert default_text(fields(One)[0]) == text


def test_page_of_the_options() -> None:
    pytest.importorskip("flask", reason="docs/options.py asks wsthread.flask for the keys")
    module = runpy.run_path(str(ROOT / "docs" / "options.py"))
    text = (ROOT / "docs" / "options.rst").read_text()
    assert text == module["page"](), "docs/options.rst is stale: run make docs-options"
    for key in ("WSTHREAD_PING_INTERVAL", "WSTHREAD_SHUTDOWN_SPREAD", "WSTHREAD_ORIGINS"):
        assert f"``{key}``" in text
    assert "WSTHREAD_ON_" not in text


USER = '''
from typing import Any
from wsthread import Connection, Deflate, ListenableManager, Manager, Opcode, SimpleManager, Upgrader

def handle(conn: Connection) -> None: ...
def on_message(conn: Connection, opcode: Opcode, payload: Any) -> None: ...
def number(value: int) -> None: ...

class Own(ListenableManager):
    def on_connect(self, conn: Connection) -> None: ...  # type: ignore[override]

manager: Manager = Manager()
Manager(max_message_size=1, max_connections=None, overflow="block", shutdown_code=1012)
Manager(max_mesage_size=1)  # wrong
Manager(max_message_size="1")  # wrong
Manager(max_outbox_size=None)  # wrong
Manager(overflow="drop")  # wrong
Manager(1)  # wrong
ListenableManager(on_message=on_message, on_connect=handle, on_close=None, ping_interval=5, max_connections=1)
ListenableManager(on_mesage=on_message)  # wrong
ListenableManager(on_message=number)  # wrong
ListenableManager(max_connections="x")  # wrong
Own(on_message=on_message, read_timeout=0.5)
Own(read_timeot=0.5)  # wrong
SimpleManager(handle)
SimpleManager(handle, ping_interval=1.5)
SimpleManager(handler=handle)
SimpleManager()  # wrong
SimpleManager(number)  # wrong
SimpleManager(handle, ping_intervall=1)  # wrong
SimpleManager(handle, 1)  # wrong
Upgrader(manager)
Upgrader(manager, origins=["https://example.com"], subprotocols=["chat"], compression=Deflate(level=1))
Upgrader(manager=manager, compression=None)
Upgrader()  # wrong
Upgrader(manager, origin="*")  # wrong
Upgrader(manager, compression=True)  # wrong
manager.options.ping_interval.hex()  # wrong
manager.options.close_timeout.hex()
'''


def test_types(tmp_path: Path) -> None:
    """Type checkers know the keywords of each constructor: what is wrong fails, and nothing else does."""
    pytest.importorskip("mypy", reason="mypy is not installed; the extra dev has it")
    path = tmp_path / "user.py"
    path.write_text(USER)
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-pretty", "--hide-error-context", str(path)], cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True, timeout=110)
    errors = re.findall(r"^.*user\.py:(\d+): error: (.*)$", result.stdout, re.MULTILINE)
    lines = USER.splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert {int(number) for number, _ in errors} == expected, result.stdout + result.stderr
