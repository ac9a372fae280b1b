"""Flask's contexts for what runs after the handshake of a WebSocket, whose own contexts are gone by then.

Each piece of the application's code gets a pair of its own, an application context and a request context, as a request
has them: each callback of a mounted manager, and the handler of a route, which may have them renewed for each message.
In them ``request`` is the handshake's. ``g`` has what the handshake left there after its teardown, for that is where
many keep who somebody is; each pair has a copy of its own. In a loop over messages it has what was there when the loop
began, so that decorators below the route may keep it there as well. ``session`` is what the handshake left too,
read-only, for there is no response any more to save it with. They are torn down as after a request. What a teardown
function raises is logged and ends nothing.

What a callback raises is handled as what a view raises, within its contexts: by the application's error handlers, else
by the receivers of ``got_request_exception`` and in the application's log. Only then the rest of the library learns of
it.

A :class:`FlaskScope` lives as long as its connection and makes its contexts. They belong to the thread that runs in
them: the connection's own, or for ``on_slow`` any thread that broadcasts.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import copy
from http import HTTPStatus
from typing import Any, NoReturn

from flask import Flask, Request, g, got_request_exception
from flask.ctx import AppContext
from flask.globals import app_ctx
from flask.sessions import SessionMixin
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.wrappers import Response

from .connection import Connection, link_of
from .exceptions import ConnectionClosed
from .logs import note_told, tell
from .thread import is_failure
from .wire.frames import cut_reason

# What collects something, such as the queries that Flask-SQLAlchemy records. Other objects are shared.
_COPIED = frozenset({list, dict, set, deque})
# Where Flask-Login keeps the user of a request. It loads the user that a session names again, which is better: objects
# of a database belong to the database session that they come from, and that has ended with the handshake.
_LOGIN_USER, _LOGIN_SESSION = "_login_user", "_user_id"


class FlaskScope:
    """Makes the contexts of one connection: called with it, it returns a context manager that pushes and pops them.

    Args:
        app: the application.
        saved: the session of the handshake.
        left: the ``g`` that all others are copies of, that of the handshake.
        handler: what a route runs; None for a mounted manager.
    """

    def __init__(
        self, app: Flask, saved: SessionMixin, left: object, handler: Callable[[Connection], Any] | None,
    ) -> None:
        self._app = app
        self._saved = saved
        self._left = left
        self._handler = handler
        self._contexts: ExitStack | None = None  # Those of the handler.

    @contextmanager
    def __call__(self, conn: Connection) -> Iterator[None]:
        failure: Exception | None = None
        try:
            with self._contexts_for(conn) as context:
                try:
                    self._preprocess_values(conn, context.request)
                    yield
                except HTTPException as error:
                    _close(conn, error)
                except Exception as error:
                    failure = self._handle(conn, error) if is_failure(conn, error) else error
                    if failure is not None:
                        raise failure
        except Exception as error:
            if error is not failure:
                tell(logging.ERROR, "%s: error in a teardown function", conn, error=error)
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # Its traceback leads to this frame.

    @contextmanager
    def _contexts_for(self, conn: Connection) -> Iterator[Any]:
        # What the server had put there is gone, but Flask's logger writes to this one.
        environ = {**link_of(conn).snapshot.environ, "wsgi.errors": sys.stderr}
        context: Any = self._app.request_context(environ)
        # Before it is pushed, for then it opens none. The name depends on Flask's version.
        setattr(context, "_session" if hasattr(context, "_session") else "session", _ReadOnlySession(self._saved))
        # Before Flask 3.2 a request context within those of a view, as in on_slow, does not bring a g of its own.
        bare = self._app.app_context() if not isinstance(context, AppContext) else None
        vars((bare or context).g).update(_copy_left(vars(self._left), self._saved))
        with bare or nullcontext(), context:
            yield context

    def _handle(self, conn: Connection, error: Exception) -> Exception | None:
        """Let the application handle an exception, as one of a view.

        Returns:
            What is left to handle; None when an error handler made a refusal of it.
        """
        app: Any = self._app
        try:
            response = app.make_response(app.handle_user_exception(*own_argument(), error))
        except Exception as unhandled:
            self._tell(conn, unhandled)
            return unhandled
        if not HTTPStatus.MULTIPLE_CHOICES <= response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            return error  # An answer for errors of all kinds.
        _close(conn, HTTPException(response=response))
        return None

    def _tell(self, conn: Connection, error: Exception) -> None:
        """Tell whoever wants to know of exceptions in the application, as Flask does before it answers with a 500."""
        app: Any = self._app
        try:
            got_request_exception.send(app, _async_wrapper=app.ensure_sync, exception=error)
            app.log_exception(*own_argument(), (type(error), error, error.__traceback__))
        except Exception as another:
            tell(logging.ERROR, "%s: error in what tells of errors", conn, error=another)
        else:
            note_told(error)

    def _preprocess_values(self, conn: Connection, request: Request) -> None:
        """Do what belongs to the URL, such as its language, which ``url_for`` may want to know."""
        preprocessors = self._app.url_value_preprocessors
        try:
            for name in (None, *reversed(request.blueprints)) if preprocessors else ():
                for preprocess in preprocessors.get(name, ()):
                    preprocess(request.endpoint, request.view_args)
        except HTTPException as error:
            _close(conn, error)
            if not conn.closed:  # Nothing keeps on_close from being called.
                raise ConnectionClosed from error

    def handle(self, conn: Connection) -> None:
        """Run the handler, in the connection's thread."""
        assert self._handler is not None
        try:
            with ExitStack() as self._contexts:
                self._contexts.enter_context(self(conn))
                self._refuse(self._handler(conn))
        finally:
            self._contexts = None  # It leads back to the connection.

    def _refuse(self, result: object) -> None:
        """Raise what decorators below the route returned instead of calling the handler, such as a redirect."""
        if isinstance(result, (Response, tuple)):
            response = self._app.make_response(result)
            if response.status_code >= HTTPStatus.MULTIPLE_CHOICES:
                raise HTTPException(response=response)

    def messages(self, conn: Connection) -> Iterator[str | bytes]:
        """Return an iterator over messages that has the handler's contexts renewed for each.

        Raises:
            RuntimeError: not called by the handler.
        """
        if self._contexts is None or not link_of(conn).sender.is_own_thread():
            raise RuntimeError("messages() is for the handlers of routes, in their own threads")
        return self._messages(conn, self._contexts)

    def _messages(self, conn: Connection, contexts: ExitStack) -> Iterator[str | bytes]:
        left: object = g._get_current_object()
        while True:
            try:
                contexts.close()
                self._left = left
                message = conn.receive()
            except ConnectionClosed:
                return
            finally:
                # The handler is in them whatever happened; it leaves them when it ends.
                contexts.enter_context(self(conn))
            yield message


def own_argument() -> tuple[Any, ...]:
    """Return what the methods of an application get in front of their arguments: from Flask 3.2 on the context."""
    return (app_ctx._get_current_object(),) if hasattr(AppContext, "request") else ()  # type: ignore[attr-defined]


def _copy_left(left: dict[str, Any], saved: SessionMixin) -> dict[str, Any]:
    """Return what one ``g`` gets of that of the handshake, so that its changes stay its own."""
    copies = {name: copy(value) if type(value) in _COPIED else value for name, value in left.items()}
    if _LOGIN_SESSION in saved:
        copies.pop(_LOGIN_USER, None)
    return copies


class _ReadOnlySession(dict[str, Any], SessionMixin):
    """A copy of the handshake's session for one context.

    Flask's and Flask-Login's own entries may change, for the time of the context: looking for ``current_user`` writes
    some, and a refusal of ``login_required`` flashes a message.
    """

    _OWN = frozenset({"_flashes", "_fresh", "_id", "_remember", "_remember_seconds", "_user_id", "next"})

    def __init__(self, saved: SessionMixin) -> None:
        super().__init__(saved)
        super().pop("_flashes", None)  # Those are for the next page.
        self.__dict__.update(getattr(saved, "__dict__", {}))  # Such as the sid of a session that the server stores.

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._OWN:
            self._fail()
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self.pop(key)

    def pop(self, key: str, *default: Any) -> Any:
        if key not in self._OWN:
            self._fail()
        return super().pop(key, *default)

    def _fail(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            "the session is read-only in a WebSocket: it is saved by a cookie on a response, and the last response "
            "of this connection was that of its handshake. Write to it in the view or in before_request, or from the "
            "page with an HTTP request.")

    __ior__ = clear = popitem = setdefault = update = _fail
    modified = property(lambda self: False, _fail)


def _close(conn: Connection, error: HTTPException) -> None:
    """Close a connection with what would be an HTTP response: 4000 and its status (RFC 6455 7.4.2)."""
    status = error.get_response().status_code
    reason = HTTP_STATUS_CODES.get(status, "")
    if isinstance(error.description, str) and error.description != type(error).description:
        reason = error.description  # The application's own words.
    conn.close(4000 + status, cut_reason(reason))
