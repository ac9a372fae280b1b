"""What belongs around the application's code in Django, for what runs after the handshake of a WebSocket.

Django ties a database connection to a thread and gives it back at the end of a request, and each WebSocket has a thread
of its own and a request that ended with its 101. So each piece of the application's code gets here what a request has:
it begins without old database connections, and at its end those of its thread are closed. Those are each callback, and
the handler of a view, which may have this renewed for each message.

``conn.request`` is the request object of the handshake itself, so ``user``, ``session``, ``resolver_match`` and
whatever middleware has put there are what they were. Its environ has lost what belongs to the server. The session is
that object too. What is written to it lasts as long as the connection. Nothing saves it, because there is no response
any more, unless the application calls ``session.save()``; the log tells of a change that was not saved.

What a callback raises goes where exceptions of views go: to the receivers of ``got_request_exception`` and to the
logger ``django.request``, each with the request. Exceptions that stand for an answer, such as ``PermissionDenied``,
close the connection with 4000 and the status (RFC 6455 7.4.2).

A :class:`DjangoScope` lives as long as its connection. Its methods run in the connection's thread; but ``on_slow`` runs
in any thread that broadcasts, perhaps that of a view in the middle of a transaction, so there it leaves database
connections alone.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import Any

from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.core.signals import got_request_exception
from django.db import close_old_connections, connections, reset_queries
from django.http import Http404, HttpRequest
from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import translation

from .connection import Connection, link_of
from .exceptions import ConnectionClosed
from .logs import note_told, tell
from .thread import is_failure
from .wire.frames import cut_reason

# Exceptions that Django answers with a status.
_ANSWERS: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (Http404, HTTPStatus.NOT_FOUND), (PermissionDenied, HTTPStatus.FORBIDDEN), (BadRequest, HTTPStatus.BAD_REQUEST),
    (SuspiciousOperation, HTTPStatus.BAD_REQUEST))

_logger = logging.getLogger("django.request")


class DjangoScope:
    """Makes what belongs around the code of one connection: called with it, it returns a context manager.

    Args:
        request: that of the handshake. It becomes ``conn.request``.
        handler: what a view runs; None when a manager was given.
    """

    def __init__(self, request: HttpRequest, handler: Callable[[Connection], Any] | None) -> None:
        self._request = request
        self._handler = handler
        self._is_adopted = False
        self._depth = 0  # How many of the application's functions run within each other, in the connection's thread.
        self._surroundings: ExitStack | None = None  # Those of the handler.

    @contextmanager
    def __call__(self, conn: Connection) -> Iterator[None]:
        if not self._is_adopted:
            self._adopt(conn)
        with self._databases(conn), _settings_of(self._request):
            try:
                yield
            except Exception as error:
                status = next((status for kind, status in _ANSWERS if isinstance(error, kind)), None)
                if status is not None:
                    conn.close(4000 + status, cut_reason(str(error) or status.phrase))
                else:
                    if is_failure(conn, error):
                        self._tell(conn, error)
                    raise
            finally:
                self._look_at_session(conn)

    def _adopt(self, conn: Connection) -> None:
        """Make the request of the handshake that of the connection. The first callback does it, in its thread.

        It stays the same object, so whatever refers to it, such as a user that is not loaded yet, goes on working.
        """
        self._is_adopted = True
        request: Any = self._request
        match = request.resolver_match
        # A copy, because Django changes it, and the library needs it as it is.
        request.__init__(dict(link_of(conn).snapshot.environ))
        request.resolver_match = match
        conn.request = request
        session = getattr(request, "session", None)
        if session is not None:
            _watch_saves(session)

    @contextmanager
    def _databases(self, conn: Connection) -> Iterator[None]:
        if not link_of(conn).sender.is_own_thread():
            yield
            return
        self._depth += 1
        if self._depth == 1:
            reset_queries()
            close_old_connections()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                try:
                    connections.close_all()
                except Exception as error:
                    tell(logging.ERROR, "%s: error at closing a database connection", conn, error=error)

    def _tell(self, conn: Connection, error: Exception) -> None:
        """Tell whoever wants to know of exceptions in the application, as Django does before it answers with a 500."""
        try:
            got_request_exception.send(sender=None, request=self._request)
            _logger.error(
                "Error in a WebSocket: %s", self._request.path, exc_info=error,
                extra={"status_code": HTTPStatus.INTERNAL_SERVER_ERROR.value, "request": self._request})
        except Exception as another:
            tell(logging.ERROR, "%s: error in what tells of errors", conn, error=another)
        else:
            note_told(error)

    def _look_at_session(self, conn: Connection) -> None:
        session: Any = getattr(self._request, "session", None)
        if getattr(session, "modified", False):
            session.modified = False
            tell(
                logging.WARNING, "%s: the session was changed, and nothing saves it after the handshake: call "
                "conn.request.session.save(), or change it in a view", conn)

    def handle(self, conn: Connection) -> None:
        """Run the handler, in the connection's thread."""
        assert self._handler is not None
        try:
            with ExitStack() as self._surroundings:
                self._surroundings.enter_context(self(conn))
                self._handler(conn)
        finally:
            self._surroundings = None  # It leads back to the connection.

    def messages(self, conn: Connection) -> Iterator[str | bytes]:
        """Return an iterator over messages that has the handler's surroundings renewed for each.

        Raises:
            RuntimeError: not called by the handler, or within ``transaction.atomic()``.
        """
        if self._surroundings is None or not link_of(conn).sender.is_own_thread():
            raise RuntimeError("messages() is for the handlers of views, in their own threads")
        return self._messages(conn, self._surroundings)

    def _messages(self, conn: Connection, surroundings: ExitStack) -> Iterator[str | bytes]:
        while True:
            if any(one.in_atomic_block for one in connections.all(initialized_only=True)):
                raise RuntimeError(
                    "messages() closes the database connection while it waits, and that is in transaction.atomic(): "
                    "begin the transaction within the loop")
            try:
                surroundings.close()
                message = conn.receive()
            except ConnectionClosed:
                return
            finally:
                # The handler is in them whatever happened; it leaves them when it ends.
                surroundings.enter_context(self(conn))
            yield message


@contextmanager
def _settings_of(request: HttpRequest) -> Iterator[None]:
    """Give the calling thread what Django keeps per thread for a request: for ``reverse()``, and its language."""
    prefix, urlconf = get_script_prefix(), get_urlconf()
    set_script_prefix(request.META["SCRIPT_NAME"])
    set_urlconf(getattr(request, "urlconf", None))
    language = getattr(request, "LANGUAGE_CODE", None)  # Of LocaleMiddleware.
    try:
        if language is None:
            yield
        else:
            with translation.override(language):
                yield
    finally:
        set_script_prefix(prefix)
        set_urlconf(urlconf)


def _watch_saves(session: Any) -> None:
    """Let a session note when it has been saved, which Django does not, since a request ends with that."""
    reference = weakref.ref(session)  # It is to go without the cyclic collector.

    def save(*args: Any, **kwargs: Any) -> None:
        own: Any = reference()
        type(own).save(own, *args, **kwargs)
        own.modified = False

    session.modified = False  # The handshake has saved it.
    session.save = save
