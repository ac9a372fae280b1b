"""The life of the process that managers live in: one housekeeper for all, the end, forks.

The WSGI server knows nothing of detached sockets, so nobody tells us that it stops. Some servers can be asked, see
:func:`wsthread.servers.is_stopping`: managers do that when they are checked. Under the others ``atexit`` is the only
call, and under all of them it is the last.

A manager enters with its first connection. All of this is per process: a child of a fork starts empty. But a manager
follows forks from the moment it is made, because an application may make it before the server forks its workers. If
the C extension is missing, the first manager that enters lets the log say so.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import threading
import weakref
from typing import Protocol

from . import clock, logs, servers, speedups
from .housekeeper import Housekeeper
from .locks import taking
from .logs import tell, tell_aside


class Participant(Protocol):
    """What takes part in the life of a process: the inside of a manager."""

    def check(self, now: float) -> None:
        """Do what is due."""

    def begin_shutdown(self) -> float:
        """Refuse new connections and start to close those there are; return when that began."""

    def finish_shutdown(self, timeout: float) -> bool:
        """Wait until they are gone, ``timeout`` seconds at most; tell whether they are."""

    def reset_after_fork(self) -> None:
        """Forget what belongs to the parent process; only the forking thread runs."""

    def dump(self) -> str:
        """Return what its connections do."""

    @property
    def shutdown_timeout(self) -> float:
        """Seconds it would like to have for stopping."""


_lock = threading.Lock()  # Guards the four below.
_following: weakref.WeakSet[Participant] = weakref.WeakSet()  # Those to be reset in a child of a fork.
_managers: weakref.WeakSet[Participant] = weakref.WeakSet()
_housekeeper: Housekeeper | None = None
_registered = False
_exit_limit = math.inf  # Seconds.

_SLOW = (
    "the C extension of wsthread is missing (%s): everything works, but messages of 64 KiB take 4 to 6 times as long, "
    "and a thousand busy connections get half as much done; with a C compiler and Python's headers, run "
    "pip install --force-reinstall --no-cache-dir --no-binary wsthread wsthread")


def follow_forks(manager: Participant) -> None:
    """Let a manager be reset in each child of a fork, from now on. Any thread may call it."""
    with taking(_lock):
        _following.add(manager)


def enter(manager: Participant, tick: float) -> Housekeeper:
    """Let a manager take part, and return the housekeeper of this process. Any thread may call it, again and again.

    Args:
        manager: its ``check`` is called at least every ``tick`` seconds from now on.
        tick: seconds.

    Raises:
        RuntimeError: the system starts no more threads.
    """
    global _registered, _housekeeper
    with taking(_lock):
        _managers.add(manager)
        if not _registered:
            atexit.register(_shut_down_all)
            _registered = True
        is_first = _housekeeper is None
        if _housekeeper is None:
            _housekeeper = Housekeeper()
        housekeeper = _housekeeper
    if is_first and speedups.missing is not None:
        tell_aside(logging.INFO, _SLOW, speedups.missing)
    housekeeper.add(manager, tick)
    return housekeeper


def dump_on_signal(signum: int) -> None:
    """Log :meth:`Manager.dump` of each manager of this process when a signal comes, such as ``signal.SIGUSR2``.

    gunicorn's workers leave SIGUSR2 alone. Only the main thread may call this; the module of the application, as the
    server imports it, is a good place. With ``--preload`` it is not, for gunicorn resets the signals of a worker that
    starts: call it in ``post_worker_init`` of gunicorn's configuration then.

    Raises:
        ValueError: called from another thread.
    """

    def handle(*args: object) -> None:
        # Not here: the thread that the signal interrupted may hold the locks that a dump needs.
        threading.Thread(target=_log_dumps, name="wsthread-dump", daemon=True).start()

    signal.signal(signum, handle)


def _log_dumps() -> None:
    for manager in managers():
        tell(logging.WARNING, "%s: %s", manager, manager.dump())


def managers() -> list[Participant]:
    """Return those of this process that have had a connection. Any thread may call it."""
    with taking(_lock):
        return list(_managers)


def limit_exit(seconds: float) -> None:
    """Let the end of this process wait no longer for peers, because they are in it and will not answer any more.

    Args:
        seconds: for all managers together; connections that had to be cut are given a moment besides.
    """
    global _exit_limit
    _exit_limit = seconds


def _shut_down_all() -> None:
    stopping = managers()
    # It may have begun long ago, while the server waited for a request to end.
    deadlines = [
        manager.begin_shutdown() + min(servers.time_to_stop(manager.shutdown_timeout), _exit_limit)
        for manager in stopping]
    for manager in stopping:
        manager.finish_shutdown(max(0.0, max(deadlines) - clock.now()))
    if _housekeeper is not None:
        _housekeeper.stop()  # The end of a sub-interpreter allows no other thread.


def _reset_all() -> None:
    global _lock, _housekeeper
    _lock = threading.Lock()  # Another thread of the parent may have held it.
    logs.reset_after_fork()
    if _housekeeper is not None:
        _housekeeper.close_after_fork()
        _housekeeper = None
    failure: BaseException | None = None
    for manager in list(_following):
        try:
            manager.reset_after_fork()
        except BaseException as error:  # Python tells of it. The others are to be reset nevertheless.
            failure = error
    if failure is not None:
        raise failure


os.register_at_fork(after_in_child=_reset_all)
