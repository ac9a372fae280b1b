"""The Flask extension: WebSockets as routes, on the application and on blueprints.

::

    from wsthread.flask import WebSockets

    app = Flask(__name__)
    ws = WebSockets(app)                    # or WebSockets(), and ws.init_app(app) in the application factory

    @ws.route("/echo/<name>")
    def echo(conn, name):
        for message in conn:
            conn.send(f"{name}: {message}")

The handshake is an ordinary request: its view answers with a 101 or with anything else, and ``before_request``,
decorators, ``abort`` and ``after_request`` do what they always do. That request is over at the 101, its contexts are
torn down, and its database connection is back in the pool.

What runs later gets contexts of its own, see :mod:`wsthread.flask_contexts`. What the connections of an application
have in common is in ``app.extensions["wsthread"]``: a manager for all routes, and the options of the upgraders.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields
from http import HTTPStatus
from typing import Any, NamedTuple

from flask import Blueprint, Flask, current_app, request, session
from flask.testing import FlaskClient
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import BadRequest
from werkzeug.routing import WebsocketMismatch
from werkzeug.wrappers import Response

from . import clock, testing
from .connection import Connection, link_of
from .flask_contexts import FlaskScope
from .handlers import check_function
from .manager import Manager
from .options import Options, UpgraderOptions
from .upgrader import Upgrader

_PREFIX = "WSTHREAD_"
_IS_VIEW = "_wsthread_view"  # Marks what :meth:`WebSockets.handler` returns; functools.wraps passes it on.


def configuration_key(option: str) -> str:
    """Return the key that an application's configuration has for an option."""
    return _PREFIX + option.upper()


class WebSockets:
    """The extension. One object serves any number of applications.

    The configuration has a key for each option of :class:`wsthread.Manager`, for the routes, and of
    :class:`wsthread.Upgrader`: its name in upper case behind ``WSTHREAD_``. ``docs/options.rst`` lists them.
    :meth:`init_app` reads them.

    Args:
        app: an application to begin with; None to call :meth:`init_app` later.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._apps: weakref.WeakSet[Flask] = weakref.WeakSet()
        self._rules: list[Callable[[Flask], None]] = []  # Each adds a rule to an application.
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Let an application have WebSockets, and the routes of this object.

        A plain HTTP request for an address that has a WebSocket only is answered with 426 from now on, and
        ``app.test_client()`` has :meth:`WebSocketClient.websocket`; unless the application has an error handler for
        Werkzeug's WebsocketMismatch, or a test client of its own.

        Raises:
            ValueError: the configuration has an unknown ``WSTHREAD_`` key, or a value that makes no sense.
        """
        if app in self._apps:
            return
        if "wsthread" not in app.extensions:
            app.extensions["wsthread"] = _State.of(app.config)
            if WebsocketMismatch not in app.error_handler_spec[None][HTTPStatus.BAD_REQUEST]:
                app.register_error_handler(WebsocketMismatch, _answer_mismatch)
            if app.test_client_class is None:
                app.test_client_class = WebSocketClient
        self._apps.add(app)
        for add_rule in self._rules:
            add_rule(app)

    @property
    def manager(self) -> Manager:
        """The manager of all routes of the current application; outside of any, that of the only one.

        Raises:
            RuntimeError: there is no such application.
        """
        if current_app:
            return _State.current().manager
        apps = list(self._apps)
        if len(apps) != 1:
            raise RuntimeError(f"there is no current application, and there are {len(apps)} that this may be about")
        return _State.of_app(apps[0]).manager

    # Blocking style

    def handler(self, function: Callable[..., Any]) -> Callable[..., ResponseReturnValue]:
        """Make a view of a function that is called as ``function(conn, **view_args)``, in the connection's thread.

        When it returns, the connection is closed: with 1000, or with 4000 and the status if it returned a response of
        300 and more or raised an HTTPException, as ``abort(403)`` does: 4403. The decorator comes last, so that
        others decide before the handshake is answered::

            @app.route("/chat/<room>", websocket=True)
            @login_required
            @ws.handler
            def chat(conn, room): ...

        Raises:
            TypeError: the function is no function, takes no connection, or is ``async def``; it needs a thread.
        """
        if getattr(function, _IS_VIEW, False) is True:  # A mock has any attribute.
            return function
        check_function(function, "handler", ("conn",), more=True)

        @functools.wraps(function)
        def view(*args: Any, **kwargs: Any) -> ResponseReturnValue:
            return _upgrade(_State.current().manager, lambda conn: function(conn, *args, **kwargs))

        setattr(view, _IS_VIEW, True)
        return view

    def route(
        self, rule: str, bp: Blueprint | None = None, **options: Any,
    ) -> Callable[[Callable[..., Any]], Callable[..., ResponseReturnValue]]:
        """Decorate a handler, and add a rule for it to a blueprint or to each application of this object.

        Args:
            rule: as for ``app.route``; its converters' values are passed to the handler.
            bp: the blueprint. None for the applications, also those that come later.
            **options: as for ``app.route``: ``endpoint``, ``subdomain``, ``defaults``.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., ResponseReturnValue]:
            view = self.handler(function)
            self._add_rule(rule, view, bp, options)
            return view

        return decorate

    def messages(self, conn: Connection) -> Iterator[str | bytes]:
        """Yield messages like ``conn``, each in contexts of its own. For the handler of a route, in its thread.

        Those that the handler has are torn down before each wait, so that no database connection is held by a
        client that says nothing, and new ones are there when a message has come and when the loop is over. So ``g``
        and objects of the database do not outlive a message.

        Raises:
            RuntimeError: called from elsewhere.
        """
        scope = link_of(conn).scope
        if not isinstance(scope, FlaskScope):
            raise RuntimeError("the connection is none of a route")
        return scope.messages(conn)

    # Callback style

    def upgrade(self, manager: Manager) -> Response:
        """Return the response that gives the current request's connection to a manager, or refuses it.

        ::

            @app.route("/chat", websocket=True)
            @login_required
            def chat():
                return ws.upgrade(manager)
        """
        return _upgrade(manager)

    def mount(
        self, rule: str, manager: Manager, bp: Blueprint | None = None, endpoint: str | None = None, **options: Any,
    ) -> None:
        """Add a rule whose connections a manager gets, such as a :class:`wsthread.ListenableManager`.

        Args:
            rule: as for ``app.route``.
            manager: its options are its own, those of the upgrader are in the configuration.
            bp: the blueprint. None for the applications, also those that come later.
            endpoint: default: the words of the rule, joined by underscores.
            **options: as for ``app.route``.
        """
        if endpoint is None:
            endpoint = re.sub(r"\W+", "_", rule).strip("_") or "websocket"
        self._add_rule(rule, lambda **view_args: _upgrade(manager), bp, {"endpoint": endpoint, **options})

    def _add_rule(
        self, rule: str, view: Callable[..., ResponseReturnValue], bp: Blueprint | None, options: dict[str, Any],
    ) -> None:
        options = {"view_func": view, "websocket": True, **options}
        if bp is not None:
            bp.add_url_rule(rule, **options)
            return
        self._rules.append(lambda app: app.add_url_rule(rule, **options))
        for app in self._apps:
            app.add_url_rule(rule, **options)


class WebSocketClient(FlaskClient):
    """A test client with WebSockets; the base for one of your own."""

    def websocket(self, path: str = "/", **options: Any) -> testing.WebSocket:
        """Open a WebSocket with the cookies of this client, see :func:`wsthread.testing.connect`."""
        return testing.connect(self, path, **options)


class _RouteManager(Manager):
    """Runs the handlers of an application's routes."""

    def serve(self, conn: Connection) -> None:
        """Run the handler."""
        link = link_of(conn)
        assert isinstance(link.scope, FlaskScope)
        link.callback = "handler", clock.now()
        link.scope.handle(conn)


class _State(NamedTuple):
    """What an application has in common.

    Attributes:
        manager: that of the routes.
        upgraders: the options of all upgraders.
    """

    manager: _RouteManager
    upgraders: UpgraderOptions

    @classmethod
    def of(cls, config: dict[str, Any]) -> _State:
        """Read the configuration."""
        names = {kind: [field.name for field in fields(kind)] for kind in (Options, UpgraderOptions)}
        known = {configuration_key(name) for found in names.values() for name in found}
        unknown = sorted(key for key in config if key.startswith(_PREFIX) and key not in known)
        if unknown:
            raise ValueError(f"the configuration has {', '.join(unknown)}; there is only {', '.join(sorted(known))}")
        given = {
            kind: {name: config[configuration_key(name)] for name in found if configuration_key(name) in config}
            for kind, found in names.items()}
        try:
            return cls(_RouteManager(**given[Options]), UpgraderOptions(**given[UpgraderOptions]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"a {_PREFIX} value of the configuration: {error}") from error

    def upgrader(self, manager: Manager) -> Upgrader:
        """Return an upgrader for a manager, with the options of the application."""
        return Upgrader(manager, **vars(self.upgraders))

    @staticmethod
    def of_app(app: Flask) -> _State:
        """Return that of an application."""
        if "wsthread" not in app.extensions:
            raise RuntimeError(f"{app.name} has no WebSockets yet: call init_app(app) of the extension")
        state: _State = app.extensions["wsthread"]
        return state

    @classmethod
    def current(cls) -> _State:
        """Return that of the current application."""
        return cls.of_app(current_app)


def _upgrade(manager: Manager, handler: Callable[[Connection], Any] | None = None) -> Response:
    app, saved = _behind(current_app), _behind(session)
    return _State.of_app(app).upgrader(manager).upgrade(request, scope=FlaskScope(app, saved, handler))


def _behind(proxy: Any) -> Any:
    """Return what one of Flask's proxies stands for at the moment."""
    return proxy._get_current_object()


def _answer_mismatch(error: WebsocketMismatch) -> ResponseReturnValue:
    """Tell a plain request for a WebSocket what is missing, where Flask has only a bare 400."""
    state = _State.current()
    response = state.upgrader(state.manager).upgrade(request)
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        return response
    upgrade = request.headers.get("Upgrade", "")
    if upgrade.lower() != "websocket":  # A list of protocols (RFC 9110 7.8), which the rules do not look into.
        return current_app.handle_http_exception(BadRequest(
            f"A rule with websocket=True matches requests with Upgrade: websocket alone, and Upgrade is {upgrade!r}. "
            "Let the client, or the proxy that adds the rest, send only that."))
    # The other way round: a handshake for a page. Whoever handles a 400 else is to have it.
    return current_app.handle_http_exception(BadRequest(error.description))
