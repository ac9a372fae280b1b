"""What the connections of one manager have in common. Checked when the manager is made, read by everyone after."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, get_args

#: What a broadcast does with a peer for which ``max_outbox_size`` bytes wait already.
Overflow: TypeAlias = Literal["close", "drop_oldest", "drop_newest", "block"]

_BYTES = frozenset({"max_message_size", "max_outbox_size"})
_MOST_BYTES = 1 << 48  # More is no limit; say None.
_MAY_BE_NONE = frozenset({
    "max_message_size", "max_message_rate", "max_connections", "max_connections_per_address",
    "read_timeout", "write_timeout", "ping_interval", "ping_timeout",
})


@dataclass(frozen=True)
class Options:
    """Limits and deadlines; :class:`wsthread.Manager` tells what each means.

    Raises:
        ValueError: a value that makes no sense, by name.
    """

    max_message_size: int | None
    max_message_rate: float | None
    max_outbox_size: int
    overflow: Overflow
    max_connections: int | None
    max_connections_per_address: int | None
    read_timeout: float | None
    write_timeout: float | None
    close_timeout: float
    ping_interval: float | None
    ping_timeout: float | None

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "overflow":
                if value not in get_args(Overflow):
                    raise ValueError(f"overflow is {value!r}, it must be one of {', '.join(get_args(Overflow))}")
            elif value is None:
                if name not in _MAY_BE_NONE:
                    raise ValueError(f"{name} must be a number")
            elif isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"{name} is {value!r}, it must be a number greater than 0")
            elif name in _BYTES and not (isinstance(value, int) and value <= _MOST_BYTES):
                raise ValueError(f"{name} is {value!r}, it must be a number of bytes")

    def shortest_deadline(self) -> float:
        """Return the shortest time that a connection is given for anything, in seconds."""
        times = (self.read_timeout, self.write_timeout, self.close_timeout, self.ping_interval, self.ping_timeout)
        return min(time for time in times if time is not None)
