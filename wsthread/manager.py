"""The base of the managers: the public face of many connections.

A manager owns its connections from the handshake to the end. What a connection's thread does in between is up to a
subclass: :mod:`wsthread.handlers` has the two that come with the package. Inside is a :class:`wsthread.hub.Hub`; the
rest of the package gets at it by :func:`hub_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .addressing import Addressees
from .bus.backplane import Gap
from .callbacks import Callback, WithCallbacks, callbacks_of
from .connection import Connection, link_of
from .exchange import Exchange
from .fanout import Broadcast
from .hub import Hub
from .options import Options, option, takes
from .presence import Member
from .wire.frames import CloseCode
from .wire.messages import Payload
from .wire.protocol import check_close

NO_CALLBACK = "the method of that name if a subclass has one, else nothing is called"


@dataclass(frozen=True, kw_only=True)
class ManagerOptions(Options):
    """What any manager may be told: callbacks about other processes, besides the options."""

    on_notify: Callable[[Any], Any] | None = option(
        None,
        "A function that is called as on_notify(data) in every process, this one too, when one of them has called "
        "manager.notify(data).",
        none=NO_CALLBACK)
    on_members: Callable[[str], Any] | None = option(
        None,
        "A function that is called as on_members(group) in every process when manager.members(group) has changed. "
        "What it broadcasts should be local=True, for the other processes are called as well.",
        none=NO_CALLBACK)
    on_gap: Callable[[Gap], Any] | None = option(
        None,
        "A function that is called as on_gap(gap) when this process has missed what others have published, for good. "
        "gap.missing is the number, or None.",
        none=NO_CALLBACK)


class Manager(WithCallbacks):
    """Base of the managers: subclass it and override :meth:`serve`.

    The callbacks here are about other processes. They run in a thread of the manager's own, one after another.

    Attributes:
        options: what it was told, see :class:`wsthread.options.Options`.
    """

    on_notify: Callback[Callable[[Any], Any]] = Callback("data")
    on_members: Callback[Callable[[str], Any]] = Callback("group")
    on_gap: Callback[Callable[[Gap], Any]] = Callback("gap")

    @takes(ManagerOptions)
    def __init__(self, **options: Any) -> None:
        """Make a manager; nothing starts before its first connection.

        Args:
            **options: those of :class:`ManagerOptions`.

        Raises:
            TypeError: an unknown option; a callback that is no function, is ``async def``, or takes other parameters.
            ValueError: a value that makes no sense.
        """
        super().__init__(options)
        self.options = Options(**options)
        self._exchange = Exchange(self, self.options, callbacks_of(self))
        self._hub = self._exchange.hub

    # What an application asks

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The connections, in the order in which they were accepted. Any thread may look.

        A connection is among them, and in its groups, and gets broadcasts, from the moment it is let in until it begins
        to close. It is let in when its ``on_connect`` has returned, or before that when it joins a group, sends or
        receives, or broadcasts in its own thread. In the handler style there is no ``on_connect``, so the handler lets
        it in by what it does.
        """
        return tuple(sorted(self._hub.registry.snapshot(), key=lambda conn: link_of(conn).number))

    def get(self, id: str) -> Connection | None:
        """Return the one of the connections with this id, or None. Any thread may call it."""
        return self._hub.registry.get(id)

    def in_group(self, group: str) -> tuple[Connection, ...]:
        """Return the connections of this process in a group; none when there is no such group. Any thread may call it.

        Raises:
            TypeError: the group is no str.
        """
        return self._hub.registry.snapshot([_checked(group)])

    def members(self, group: str) -> tuple[Member, ...]:
        """Return the connections of all processes that have joined a group with ``info``. Any thread may call it.

        Each has an ``id``, its ``info``, and ``since`` when, in seconds since the epoch. They are in the order in which
        they joined. What other processes do is known a moment later.

        Raises:
            TypeError: the group is no str.
        """
        return self._exchange.members(_checked(group))

    def broadcast(
        self, payload: Payload, *, to: Addressees | None = None, exclude: Addressees = (), local: bool = False,
    ) -> Broadcast:
        """Send a message to many connections. Any thread may call it, a Flask view as well as a callback.

        It reaches the connections of all processes that the ``backplane`` leads to, those of this one first. It
        waits for no peer, unless ``overflow`` is ``"block"``, and no peer's failure is raised. The message is
        encoded once, and once more for each kind of compression that the peers agreed to.

        Args:
            payload: a str goes as text; bytes, bytearray or memoryview go as binary.
            to: a group's name, a connection, or several of either; a connection that is meant twice gets the message
                once. None for every connection.
            exclude: likewise, those that do not get it.
            local: whether only the connections of this process are meant.

        Returns:
            How many connections of this process got it, and how many did not. It is false when none took the message.

        Raises:
            BackplaneFull: the connections of this process have been served; too much waits for other processes, or the
                message is too large for them.
            TypeError: the payload is neither str nor bytes-like; ``to`` or ``exclude`` is something else, such as the
                id of a connection.
        """
        return self._exchange.broadcast(payload, to, exclude, local)

    def close(
        self, *, to: Addressees | None = None, exclude: Addressees = (), code: int = CloseCode.NORMAL_CLOSURE,
        reason: str = "",
    ) -> int:
        """Close many connections, in all processes. Any thread may call it; it waits for nothing.

        Args:
            to: as for :meth:`broadcast`; None for every connection.
            exclude: likewise.
            code: as for :meth:`Connection.close`.
            reason: likewise.

        Returns:
            How many connections of this process those were.

        Raises:
            BackplaneFull: as for :meth:`broadcast`.
            TypeError: ``to`` or ``exclude`` is something else; the code is no int or the reason no str.
            ValueError: the code may not be sent or the reason is too long.
        """
        return self._exchange.close_many(check_close(code, reason), to, exclude)

    def notify(self, data: Any) -> None:
        """Tell all processes something: ``on_notify(data)`` is called in each, this one too. Any thread may call it.

        It is for what only the processes themselves can do, such as :meth:`close_where`.

        Args:
            data: anything that has JSON.

        Raises:
            BackplaneFull: as for :meth:`broadcast`.
            TypeError: the data has no JSON.
            ValueError: likewise.
        """
        self._exchange.notify(data)

    def close_where(
        self, predicate: Callable[[Connection], bool], code: int = CloseCode.NORMAL_CLOSURE, reason: str = "",
    ) -> int:
        """Close the connections of this process for which a predicate is true, such as those of a user who logged out.

        Any thread may call it; it waits for nothing.

        Args:
            predicate: called as ``predicate(conn)`` in the calling thread; what it raises is raised.
            code: as for :meth:`Connection.close`.
            reason: likewise.

        Returns:
            How many connections those were.

        Raises:
            TypeError: the code is no int or the reason no str.
            ValueError: the code may not be sent or the reason is too long.
        """
        close = check_close(code, reason)  # A wrong call is wrong even when no connection is chosen.
        return self._hub.fanout.close(tuple([conn for conn in self.connections if predicate(conn)]), close)

    def stats(self) -> dict[str, Any]:
        """Return numbers for the operator, fit for JSON. Counts are since the process began. Any thread may call it."""
        return {**self._hub.stats(), "backplane": self._exchange.stats()}

    def dump(self) -> str:
        """Return a line for each connection: what it does since when, its queue, its pong. Any thread may call it.

        It has those too that are not let in yet, or closing.
        """
        return self._hub.dump()

    def shutdown(
        self, code: int | None = None, reason: str = "", *, timeout: float | None = None, spread: float | None = None,
    ) -> bool:
        """Close all connections and refuse new ones for good, with 503. Any thread may call it, also twice.

        It happens by itself when gunicorn stops the worker or the process ends. Handlers that are running may finish
        within the time; a peer that does not answer is cut at its end.

        Args:
            code: as for :meth:`Connection.close`; None for the manager's ``shutdown_code``.
            reason: likewise.
            timeout: seconds to wait for the connections' ends; None for the manager's ``shutdown_timeout``.
            spread: seconds over which the Closes are spread; None for the manager's ``shutdown_spread``.

        Returns:
            Whether all connections have ended, but for the one in whose callback it is called.

        Raises:
            TypeError: the code is no int or the reason no str.
            ValueError: the code may not be sent or the reason is too long.
        """
        self._hub.begin_shutdown(check_close(self.options.shutdown_code if code is None else code, reason), spread)
        return self._hub.finish_shutdown(self.options.shutdown_timeout if timeout is None else timeout)

    # What a subclass does

    def serve(self, conn: Connection) -> None:
        """Do the work of one connection, in its thread. When it returns, the connection is closed with 1000.

        It calls functions of the application with :meth:`call`.
        """
        raise NotImplementedError

    def call(self, conn: Connection, name: str, function: Callable[..., Any], *args: Any) -> None:
        """Call a function of the application, in the connection's thread, within what belongs around it.

        That is Flask's contexts, when the connection came through Flask; and :meth:`dump` tells what runs.

        Args:
            conn: the connection.
            name: what :meth:`dump` calls it, such as ``"on_message"``.
            function: called as ``function(conn, *args)``.
            *args: more arguments.
        """
        link_of(conn).call(name, function, conn, *args)

    def report_error(self, conn: Connection, error: BaseException) -> None:
        """Called for an exception that the application's code raised, after it was logged."""

    def report_slow(self, conn: Connection) -> None:
        """Called in a broadcasting thread when a peer became too slow: once, until it has taken all that waited."""

    def report_close(self, conn: Connection) -> None:
        """Called once, in the connection's thread, when the connection is CLOSED."""


def _checked(group: object) -> str:
    if not isinstance(group, str):
        raise TypeError(f"a group is a str, not {group!r}")
    return group


def hub_of(manager: Manager) -> Hub:
    """Return the inside of a manager, for the rest of the package."""
    return manager._hub
