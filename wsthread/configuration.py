"""What the configuration of an application says: a key for each option, and what single routes say instead.

It is that of a Flask application, or Django's settings. An application may be configured in any order. So the keys are
read when they are first needed: by the first handshake, or by the first use of the manager. Those that Flask's
``init_app`` finds are checked there as well, for the sake of an early error. What changes when all has been read has no
effect, and the log says so once for each key.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import EllipsisType
from typing import Any, NamedTuple

from .logs import tell
from .manager import Manager
from .options import Options, UpgraderOptions
from .upgrader import Upgrader

_PREFIX = "WSTHREAD_"
_OF_FLASK_SOCK = "SOCK_SERVER_OPTIONS"


def configuration_key(option: str) -> str:
    """Return the key that an application's configuration has for an option."""
    return _PREFIX + option.upper()


_NAMES = {kind: [field.name for field in fields(kind)] for kind in (Options, UpgraderOptions)}
_KEYS = {configuration_key(name) for names in _NAMES.values() for name in names}


class RouteOptions(NamedTuple):
    """What a route says instead of the configuration, or of its manager.

    Attributes:
        upgrader: some of :class:`wsthread.options.UpgraderOptions`.
        max_message_size: ``...`` for that of the manager.
    """

    upgrader: dict[str, Any]
    max_message_size: int | None | EllipsisType

    @classmethod
    def of(cls, max_message_size: int | None | EllipsisType, **options: Any) -> RouteOptions:
        """Return those that are not ``...``.

        Raises:
            TypeError: a value of the wrong type.
            ValueError: a value that makes no sense.
        """
        given = {name: value for name, value in options.items() if value is not ...}
        # Subprotocols may be those of the configuration. An iterator is good for one time only.
        checked = vars(UpgraderOptions(**{"subprotocols": ("unknown",), **given}))
        if max_message_size is not ...:
            Options(max_message_size=max_message_size)
        return cls({name: checked[name] for name in given}, max_message_size)

    def __bool__(self) -> bool:
        return bool(self.upgrader) or self.max_message_size is not ...


class Configuration:
    """The options of one application. Any thread may use it.

    Args:
        config: its configuration.
        make_manager: called with some of :class:`wsthread.options.Options`.
        name: what the manager is called, unless the configuration says something else.

    Raises:
        ValueError: an unknown key, or a value that makes no sense.
    """

    def __init__(self, config: dict[str, Any], make_manager: Callable[..., Manager], name: str) -> None:
        self._config = config
        self._make_manager = make_manager
        self._name = name
        self._lock = threading.RLock()  # Guards all below.
        self._manager: Manager | None = None
        self._upgraders = UpgraderOptions()
        self._seen: dict[str, Any] = {}  # What was read.
        self._told: set[str] = set()  # Keys that changed.
        self._parse()

    @property
    def manager(self) -> Manager:
        """The manager of the application's routes.

        Raises:
            ValueError: an unknown key, or a value that makes no sense. Only the first use reads the keys and raises it.
        """
        advice, changed = "", []
        with self._lock:
            if self._manager is None:
                options, self._upgraders = self._parse()
                self._manager = self._make_manager(**{"name": self._name, **options})
                self._seen = self._current()
                advice = self._leftover_advice()
            elif self._current() != self._seen:
                changed = self._changed_keys()
            manager = self._manager
        if advice:
            tell(logging.WARNING, "%s has no effect here: %s", _OF_FLASK_SOCK, advice)
        for key in changed:
            tell(
                logging.WARNING, "%s has changed too late and counts as it was: the configuration is read by the first "
                "handshake, or by the first use of the extension's manager", key)
        return manager

    def upgrader(self, manager: Manager | None = None, route: RouteOptions = RouteOptions({}, ...)) -> Upgrader:
        """Return an upgrader.

        Args:
            manager: who gets the connections; None for that of the routes.
            route: what holds instead of the configuration.

        Raises:
            ValueError: as for :attr:`manager`.
        """
        own = self.manager
        return Upgrader(own if manager is None else manager, **{**vars(self._upgraders), **route.upgrader})

    def _current(self) -> dict[str, Any]:
        """Return our part of the configuration as it is; a list that changes later is another one."""
        return {
            key: list(value) if isinstance(value, list) else value
            for key, value in self._config.copy().items() if key.startswith(_PREFIX)}

    def _parse(self) -> tuple[dict[str, Any], UpgraderOptions]:
        unknown = sorted(set(self._current()) - _KEYS)
        if unknown:
            raise ValueError(f"the configuration has {', '.join(unknown)}; there is only {', '.join(sorted(_KEYS))}")
        for key, value in self._current().items():
            if isinstance(value, Iterator):  # The next time, there would be nothing left.
                self._config[key] = list(value)
        manager, upgraders = (
            {name: self._config[configuration_key(name)] for name in names if configuration_key(name) in self._config}
            for names in _NAMES.values())
        try:
            Options(**manager)
            return manager, UpgraderOptions(**upgraders)
        except (TypeError, ValueError) as error:
            raise ValueError(f"a {_PREFIX} value of the configuration: {error}") from error

    def _changed_keys(self) -> list[str]:
        """Return the keys that have changed since they were read, each once."""
        current, nothing = self._current(), object()
        changed = [
            key for key in sorted({*current, *self._seen} - self._told)
            if current.get(key, nothing) != self._seen.get(key, nothing)]
        self._told.update(changed)
        return changed

    def _leftover_advice(self) -> str:
        """Return what to write for the options of Flask-Sock, if there are any."""
        leftover = self._config.get(_OF_FLASK_SOCK)
        if not leftover:
            return ""
        known = [
            f"{configuration_key(name)} = {value!r}" for name, value in dict(leftover).items()
            if configuration_key(name) in _KEYS]
        none = [name for name in leftover if configuration_key(name) not in _KEYS]
        advice = [f"write {', '.join(known)}"] if known else []
        advice += [f"nothing is needed for {', '.join(none)}"] if none else []
        return "; ".join(advice)
