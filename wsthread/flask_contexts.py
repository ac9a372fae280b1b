"""Flask's contexts for what runs after the handshake of a WebSocket, whose own contexts are gone by then.

Each piece of the application's code gets a pair of its own, an application context and a request context, as a request
has them: each callback of a mounted manager, and the handler of a route, which may have them renewed for each message.
In them ``request`` is the handshake's, ``g`` is empty but for what ``url_value_preprocessor`` puts there, and
``session`` is what the handshake left, read-only, for there is no response any more to save it with. They are torn down
as after a request.

A :class:`FlaskScope` lives as long as its connection and makes its contexts. They belong to the thread that runs in
them: the connection's own, or for ``on_slow`` any thread that broadcasts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from http import HTTPStatus
from typing import Any, NoReturn

from flask import Flask, Request
from flask.ctx import AppContext
from flask.sessions import SessionMixin
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.wrappers import Response

from .connection import Connection, link_of
from .exceptions import ConnectionClosed

_REASON_SIZE = 123  # Bytes that a Close has room for.


class FlaskScope:
    """Makes the contexts of one connection: called with it, it returns a context manager that pushes and pops them.

    Args:
        app: the application.
        saved: the session of the handshake.
        handler: what a route runs; None for a mounted manager.
    """

    def __init__(self, app: Flask, saved: SessionMixin, handler: Callable[[Connection], Any] | None) -> None:
        self._app = app
        self._saved = saved
        self._handler = handler
        self._contexts: ExitStack | None = None  # Those of the handler.

    @contextmanager
    def __call__(self, conn: Connection) -> Iterator[None]:
        # What the server had put there is gone, but Flask's logger writes to this one.
        environ = {**conn.request.environ, "wsgi.errors": sys.stderr}
        context = self._app.request_context(environ)
        # Before it is pushed, for then it opens none. The name depends on Flask's version.
        setattr(context, "_session" if hasattr(context, "_session") else "session", _ReadOnlySession(self._saved))
        # Within those of a view, as in on_slow, a request context does not bring a g of its own, before Flask 3.2.
        with nullcontext() if isinstance(context, AppContext) else self._app.app_context(), context:
            try:
                self._preprocess_values(context.request)
            except HTTPException as error:
                _close(conn, error)
                if not conn.closed:  # Nothing keeps on_close from being called.
                    raise ConnectionClosed from error
            try:
                yield
            except HTTPException as error:
                _close(conn, error)

    def _preprocess_values(self, request: Request) -> None:
        """Do what belongs to the URL, such as its language, which ``url_for`` may want to know."""
        preprocessors = self._app.url_value_preprocessors
        for name in (None, *reversed(request.blueprints)) if preprocessors else ():
            for preprocess in preprocessors.get(name, ()):
                preprocess(request.endpoint, request.view_args)

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
        while True:
            try:
                contexts.close()
                message = conn.receive()
            except ConnectionClosed:
                return
            finally:
                # The handler is in them whatever happened; it leaves them when it ends.
                contexts.enter_context(self(conn))
            yield message


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
    if error.description not in (None, type(error).description):  # The application's own words.
        reason = str(error.description)
    conn.close(4000 + status, reason.encode()[:_REASON_SIZE].decode(errors="ignore"))
