"""All options, each told once: its default, its unit, what it means, and which values make sense.

A frozen dataclass defines the arguments of a constructor, and each of its fields carries a :class:`Meaning`.
Everything else follows from the definition: :func:`takes` gives the constructor its signature and its documentation,
:mod:`wsthread.flask` has a configuration key for each field, and ``docs/options.rst`` has a row for each.

A subclass of a definition adds arguments; it stands beside the class that takes them. An object of a definition is
checked when it is made and cannot change afterwards, so any thread may read it.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast, get_args

from .bus.backplane import Backplane
from .history import History
from .wire.deflate import Deflate
from .wire.frames import CloseCode, is_valid_close_code
from .wire.handshake import check_subprotocols
from .wire.origins import Origins, check_origins

P = ParamSpec("P")
T = TypeVar("T")

#: What a broadcast does with a peer for which ``max_outbox_size`` bytes wait already.
Overflow: TypeAlias = Literal["close", "drop_oldest", "drop_newest", "block"]
#: How messages are compressed for a client; see the option of that name.
Compression: TypeAlias = Deflate | None | Callable[[Mapping[str, Any]], Deflate | None]

_KEY = "wsthread"  # Where the metadata of a field has its meaning.
_MOST_BYTES = 1 << 48  # More is no limit; say None.
_MEBIBYTE = 1 << 20
_LINE_LENGTH = 100  # Of documentation, which help() indents.


# How an option is told


class Check(NamedTuple):
    """Which values make sense.

    Attributes:
        expected: what the value must be, in words that follow "it must be".
        passes: tells whether a value is that.
    """

    expected: str
    passes: Callable[[Any], bool]


class Meaning(NamedTuple):
    """What a field is about.

    Attributes:
        help: one or two sentences.
        unit: what a number counts; empty for what is no number.
        none: what None means; None where it is not allowed.
        check: which other values make sense; None where the definition checks it by itself.
    """

    help: str
    unit: str
    none: str | None
    check: Check | None

    @classmethod
    def of(cls, field: Field[Any]) -> Meaning:
        """Return that of a field."""
        meaning: Meaning = field.metadata[_KEY]
        return meaning


def argument(help: str, *, unit: str = "", none: str | None = None, check: Check | None = None) -> dict[str, Meaning]:
    """Return the metadata of a field that has no default; see :class:`Meaning`."""
    return {_KEY: Meaning(help, unit, none, check)}


def option(default: T, help: str, *, unit: str = "", none: str | None = None, check: Check | None = None) -> T:
    """Return a field that has a default; see :class:`Meaning`."""
    return field(default=default, metadata=argument(help, unit=unit, none=none, check=check))


def default_text(field: Field[Any]) -> str:
    """Return the default of a field as a reader wants to see it; empty when there is none."""
    default = field.default
    if default is MISSING:
        return ""
    if is_dataclass(default):
        return f"{type(default).__name__}()"
    if isinstance(default, str):
        return f'"{default}"'
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        mebibytes, rest = divmod(default, _MEBIBYTE)
        return f"{default:.15g}" + (f" ({mebibytes} MiB)" if mebibytes and not rest else "")
    return repr(default)


# Which values make sense


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_POSITIVE = Check("a number greater than 0", lambda value: _is_number(value) and value > 0)
_WHOLE = Check("a number greater than 0, without fraction", lambda value: _is_whole(value) and value > 0)
_NOT_NEGATIVE = Check("a number, 0 or greater", lambda value: _is_number(value) and value >= 0)
_SIZE = Check(
    "a number greater than 0 of whole bytes, 2**48 at most",
    lambda value: _is_whole(value) and 0 < value <= _MOST_BYTES)
_CLOSE_CODE = Check(
    "a number that a Close may carry (RFC 6455 7.4)", lambda value: _is_whole(value) and is_valid_close_code(value))
_PREFIX = Check("a whole number from 1 to 128", lambda value: _is_whole(value) and 1 <= value <= 128)
_NAME = Check(
    "a str of 1 to 100 printable characters",
    lambda value: isinstance(value, str) and 0 < len(value) <= 100 and value.isprintable())
_BACKPLANE = Check(
    'a Backplane such as RedisBackplane("redis://localhost"), or "local"',
    lambda value: value == "local" or isinstance(value, Backplane))
_HISTORY = Check("a History", lambda value: isinstance(value, History))
_OVERFLOW = Check(
    f"one of {', '.join(get_args(Overflow))}", lambda value: isinstance(value, str) and value in get_args(Overflow))


# The definitions


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the connections of one manager have in common: limits, deadlines, and how they end.

    Raises:
        ValueError: a value that makes no sense, by name.
    """

    max_message_size: int | None = option(
        _MEBIBYTE,
        "The largest message that is accepted, measured after inflating. A larger one closes the connection with 1009.",
        unit="bytes", none="no limit", check=_SIZE)
    max_message_rate: float | None = option(
        None,
        "How much a peer may send, with bursts of one second's worth. Each frame counts: control frames, and each "
        "fragment of a message. More closes the connection with 1008.",
        unit="frames per second", none="no limit", check=_POSITIVE)
    max_control_rate: int | None = option(
        200,
        "How many control frames and fragments without payload a peer may send. More closes the connection with "
        "1008.",
        unit="frames in a second", none="no limit", check=_WHOLE)
    message_timeout: float | None = option(
        60.0,
        "How long a message may take from its first byte to its last. Then the connection is closed with 1008.",
        unit="seconds", none="no limit", check=_POSITIVE)
    max_held_size: int | None = option(
        128 * _MEBIBYTE,
        "How much all connections of one process together may hold of messages that are not complete, not asked for or "
        "not taken. When it is more, the connection that holds most is terminated, and so on.",
        unit="bytes", none="no limit", check=_SIZE)
    max_outbox_size: int = option(
        _MEBIBYTE,
        "How much may wait for one peer when a broadcast comes. When it would be more, overflow decides.",
        unit="bytes", check=_SIZE)
    max_inbox_size: int = option(
        _MEBIBYTE,
        "How much may wait for the application while it works and asks for no message. When it is more, reading stops "
        "until the application asks again.",
        unit="bytes", check=_SIZE)
    overflow: Overflow = option(
        "close",
        'What a broadcast does when more than max_outbox_size would wait for a peer: "close" the connection with 1013, '
        '"drop_oldest" or "drop_newest" of its broadcast messages, or "block" until the peer takes them.',
        check=_OVERFLOW)
    max_connections: int | None = option(
        10_000,
        "How many connections one process holds. It refuses more with 503 and Retry-After, before the 101. What counts "
        "is their threads: one whose handler goes on after its connection has ended counts as long as it does.",
        unit="connections", none="no limit", check=_POSITIVE)
    max_connections_per_address: int | None = option(
        None,
        "How many connections one process holds for one client address. It refuses more with 429 and Retry-After. "
        "Clients whose address is unknown are not counted; behind a proxy, apply Werkzeug's ProxyFix.",
        unit="connections", none="no limit", check=_POSITIVE)
    ipv6_prefix: int = option(
        64,
        "How much of an IPv6 address max_connections_per_address looks at. Addresses that have so much in common count "
        "as one; 128 counts each for itself.",
        unit="bits", check=_PREFIX)
    read_timeout: float | None = option(
        None,
        "How long a peer may send no message. Then the connection is closed with 1001.",
        unit="seconds", none="no limit", check=_POSITIVE)
    write_timeout: float | None = option(
        30.0,
        "How long a peer may take nothing of what waits for it. Then the connection is terminated.",
        unit="seconds", none="no limit", check=_POSITIVE)
    close_timeout: float = option(
        10.0,
        "How long the peer's part of the closing handshake may take. Then the connection is terminated.",
        unit="seconds", check=_POSITIVE)
    ping_interval: float | None = option(
        20.0,
        "The time between two Pings. Keep it below the idle timeout of proxies (nginx: 60 s).",
        unit="seconds", none="no Pings", check=_POSITIVE)
    ping_timeout: float | None = option(
        20.0,
        "How long a peer may send nothing after a Ping. Then the connection is terminated. All that it sends counts, a "
        "Pong or not; see docs/devices.rst for peers that send none.",
        unit="seconds", none="no limit", check=_POSITIVE)
    shutdown_code: int = option(
        CloseCode.GOING_AWAY,
        "What peers are told when the process stops. 1001 means that the server goes away, 1012 that it restarts.",
        unit="close code", check=_CLOSE_CODE)
    shutdown_timeout: float = option(
        10.0,
        "How long stopping may take. It takes less where the WSGI server allows less.",
        unit="seconds", check=_POSITIVE)
    shutdown_spread: float = option(
        0.0,
        "The time over which the Closes of a shutdown are spread, so that not all clients come back at once.",
        unit="seconds", check=_NOT_NEGATIVE)
    name: str | None = option(
        None,
        "What the manager is called in all processes. Managers of the same name are one room: a broadcast of one "
        "reaches the connections of all.",
        none='it is called "default"; a second manager without a name stays alone', check=_NAME)
    backplane: Backplane | Literal["local"] | None = option(
        "local",
        'What carries broadcasts to other processes. "local" reaches the worker processes of one server, and those '
        "that take their place; a RedisBackplane reaches other hosts as well.",
        none="the manager stays alone in its process", check=_BACKPLANE)
    history: History | None = option(
        None,
        "How much of the broadcasts is kept for clients that come back. They get what they have missed, or are told "
        "that it is not known; see docs/resuming.rst. overflow may not be \"block\" then.",
        none="nothing is kept", check=_HISTORY)

    def __post_init__(self) -> None:
        for one in fields(self):
            value, meaning = getattr(self, one.name), Meaning.of(one)
            if meaning.check is None or (value is None and meaning.none is not None):
                continue
            if not meaning.check.passes(value):
                or_none = "" if meaning.none is None else f", or None: {meaning.none}"
                raise ValueError(f"{one.name} is {value!r}, it must be {meaning.check.expected}{or_none}")

        if self.history is not None and self.overflow == "block":
            raise ValueError('overflow is "block", which history does not allow: all others would wait for a slow peer')

    def shortest_deadline(self) -> float:
        """Return the shortest time that a connection is given for anything, in seconds."""
        times = (self.read_timeout, self.write_timeout, self.close_timeout, self.ping_interval, self.ping_timeout)
        return min(time for time in times if time is not None)


@dataclass(frozen=True, kw_only=True)
class UpgraderOptions:
    """What handshakes have in common. What was given as an iterable is a tuple afterwards.

    Raises:
        TypeError: a value of the wrong type, by name.
        ValueError: a value that could never do anything, by name.
    """

    origins: Origins = option(
        None,
        'Which pages may connect: origins such as "https://example.com", "https://*.example.com" for all names below '
        'a domain, "http://localhost:*" for all ports, "same-origin" for what None allows; compiled patterns that '
        'match in full; a list of all these; or a callable that gets the origin and tells. "*" allows all. Clients '
        "that send no Origin are no browsers and always pass.",
        none="pages of the same host and port as in Host; apply Werkzeug's ProxyFix behind a proxy that changes it")
    subprotocols: Sequence[str] = option(
        (),
        "The names of the supported subprotocols, the preferred one first. The first that the client offers is chosen; "
        "a client that offers none of them gets a connection without one, or see require_subprotocol.")
    require_subprotocol: bool = option(
        False,
        "Whether a client that offers none of the subprotocols is refused with 400.")
    compression: Deflate | Callable[[Mapping[str, Any]], Deflate | None] | None = option(
        Deflate(),
        "How messages are compressed for clients that offer it (RFC 7692). Deflate() compresses messages of 1 KiB and "
        "more, without context takeover. A callable gets the WSGI environ of a client and returns that, or None.",
        none="no compression")

    def __post_init__(self) -> None:
        if inspect.isclass(self.compression) or inspect.iscoroutinefunction(self.compression) or not (
                callable(self.compression) or isinstance(self.compression, (Deflate, type(None)))):
            raise TypeError(
                f"compression is a Deflate or None, not {self.compression!r}, or a function that returns one of them")
        # An iterator would be used up by the first request.
        object.__setattr__(self, "origins", check_origins(self.origins))
        object.__setattr__(self, "subprotocols", check_subprotocols(self.subprotocols))
        if not isinstance(self.require_subprotocol, bool):
            raise TypeError(f"require_subprotocol is {self.require_subprotocol!r}, it must be True or False")
        if self.require_subprotocol and not self.subprotocols:
            raise ValueError("require_subprotocol is True, but subprotocols is empty: nobody could connect")

    def compression_for(self, environ: Mapping[str, Any]) -> Deflate | None:
        """Return how messages are compressed for the client behind a WSGI environ, if it offers it.

        Raises:
            TypeError: the application's function returned something else.
        """
        if not callable(self.compression):
            return self.compression
        compression = self.compression(environ)
        if not isinstance(compression, (Deflate, type(None))):
            raise TypeError(f"the function for compression returned {compression!r}, not a Deflate or None")
        return compression


# How a constructor takes them


def takes(definition: Callable[P, Any]) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Give an ``__init__`` the arguments of a definition, for type checkers, for help() and for inspect.

    It decorates an ``__init__`` with ``**options: Any``. Where the docstring has a line that begins with
    ``**options:``, the documentation has a paragraph for each field instead. Nothing is wrapped: the ``__init__`` has
    to refuse unknown names, which it does by making an object of the definition from them.

    Args:
        definition: a dataclass whose fields carry a :class:`Meaning`. Those that are keyword-only in it are
            keyword-only in the constructor.
    """

    own = inspect.get_annotations(cast(Any, definition))  # Without those of its bases. They come first.
    arguments = sorted(fields(cast(Any, definition)), key=lambda one: one.name not in own)
    parameters = inspect.signature(definition).parameters

    def decorate(init: Callable[..., None]) -> Callable[Concatenate[Any, P], None]:
        signature = inspect.signature(init)
        itself = next(iter(signature.parameters.values()))
        setattr(init, "__signature__", signature.replace(
            parameters=[itself, *(parameters[one.name] for one in arguments)]))
        if init.__doc__ is not None:  # There are none under python -OO.
            init.__doc__ = _document(init.__doc__, arguments)
        return init

    return decorate


def _document(docstring: str, arguments: Iterable[Field[Any]]) -> str:
    """Put paragraphs about arguments in place of the line about ``**options``."""
    lines = []
    for line in inspect.cleandoc(docstring).splitlines():
        text = line.lstrip()
        if text.startswith("**options:"):
            indent = line.removesuffix(text)
            for one in arguments:
                lines += textwrap.wrap(
                    _describe(one), _LINE_LENGTH, initial_indent=indent, subsequent_indent=indent + 4 * " ",
                    break_on_hyphens=False)
        else:
            lines.append(line)
    return "\n".join(lines)


def _describe(argument: Field[Any]) -> str:
    meaning, default = Meaning.of(argument), default_text(argument)
    parts = [f"{argument.name}: {meaning.help}"]
    if meaning.unit:
        parts.append(f"Unit: {meaning.unit}.")
    if argument.default is None:
        parts.append(f"Default: None ({meaning.none}).")
    else:
        parts += [f"Default: {default}."] if default else []
        parts += [f"None: {meaning.none}."] if meaning.none else []
    return " ".join(parts)
