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
have in common is in ``app.extensions["wsthread"]``, see :mod:`wsthread.configuration`: a manager for all routes,
and the options of the upgraders.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from types import EllipsisType
from typing import Any, NamedTuple, TypeAlias, overload

from flask import Blueprint, Flask, current_app, g, request, request_started, session
from flask.testing import FlaskClient
from flask.typing import ResponseReturnValue
from werkzeug.routing import WebsocketMismatch
from werkzeug.wrappers import Response

from . import clock, testing
from .callbacks import check_function
from .configuration import Configuration, RouteOptions
from .connection import Connection, link_of
from .flask_contexts import FlaskScope
from .flask_rules import answer_mismatch, configuration_of, follow_redirects
from .manager import Manager
from .options import Compression
from .wire.origins import Origins

#: What answers a request.
View: TypeAlias = Callable[..., ResponseReturnValue]

_IS_VIEW = "_wsthread_view"  # Marks what :meth:`WebSockets.handler` returns; functools.wraps passes it on.


class WebSockets:
    """The extension. One object serves any number of applications.

    The configuration has a key for each option of :class:`wsthread.Manager`, for the routes, and of
    :class:`wsthread.Upgrader`: its name in upper case behind ``WSTHREAD_``. ``docs/options.rst`` lists them. They are
    read when they are first needed: by the first handshake, or by the first use of :attr:`manager`.

    Some options may be said for a single route as well: ``max_message_size``, and those of the upgrader. They hold
    instead of the configuration, or of the manager of :meth:`mount` and :meth:`upgrade`. ``...``, the default, leaves
    it to these.

    Args:
        app: an application to begin with; None to call :meth:`init_app` later.
    """

    def __init__(self, app: Flask | None = None) -> None:
        # Each with the endpoints of rules that it has because they were made for another one.
        self._apps: weakref.WeakKeyDictionary[Flask, set[str]] = weakref.WeakKeyDictionary()
        self._newest: weakref.ref[Flask] | None = None
        self._rules: list[_Rule] = []
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Let an application have WebSockets, and the routes of this object.

        A plain HTTP request for an address that has a WebSocket only is answered with 426 from now on, unless the
        application has an error handler for Werkzeug's WebsocketMismatch. And what ``app.test_client()`` returns has
        :meth:`WebSocketClient.websocket`, of whatever class it is.

        The browser module wsthread.js is served from now on: ``url_for("wsthread.static", filename="wsthread.js")``.

        Raises:
            ValueError: the configuration has an unknown ``WSTHREAD_`` key already, or a value that makes no sense. For
                keys that are set later, the first handshake raises it, or the first use of :attr:`manager`.
        """
        if app in self._apps:
            return
        if "wsthread" not in app.extensions:
            app.extensions["wsthread"] = Configuration(app.config, _RouteManager, f"Flask {app.name}")
            request_started.connect(follow_redirects, app)
            if WebsocketMismatch not in app.error_handler_spec[None][HTTPStatus.BAD_REQUEST]:
                app.register_error_handler(WebsocketMismatch, answer_mismatch)
            if app.test_client_class is None:
                app.test_client_class = WebSocketClient
            setattr(app, "test_client", functools.partial(_make_client, app.test_client))
            if "wsthread" not in app.blueprints:
                app.register_blueprint(Blueprint(
                    "wsthread", __name__, static_folder="static/wsthread", static_url_path="/_wsthread"))
        for rule in self._rules:
            rule.add_to(app)
        self._apps[app] = {rule.endpoint for rule in self._rules if rule.is_late}
        self._newest = weakref.ref(app)

    @property
    def manager(self) -> Manager:
        """The manager of all routes of the current application; outside of any, that of the only one.

        Raises:
            RuntimeError: there is no such application.
            ValueError: the configuration was not needed before, and has an unknown key, or a value that makes no sense.
        """
        if current_app:
            return configuration_of(current_app).manager
        apps = list(self._apps)
        if len(apps) != 1:
            raise RuntimeError(f"there is no current application, and there are {len(apps)} that this may be about")
        return configuration_of(apps[0]).manager

    # Blocking style

    @overload
    def handler(self, function: Callable[..., Any]) -> View: ...

    @overload
    def handler(
        self, function: None = None, *, origins: Origins | EllipsisType = ...,
        subprotocols: Sequence[str] | EllipsisType = ..., require_subprotocol: bool | EllipsisType = ...,
        compression: Compression | EllipsisType = ..., max_message_size: int | None | EllipsisType = ...,
    ) -> Callable[[Callable[..., Any]], View]: ...

    def handler(
        self, function: Callable[..., Any] | None = None, *, origins: Origins | EllipsisType = ...,
        subprotocols: Sequence[str] | EllipsisType = ..., require_subprotocol: bool | EllipsisType = ...,
        compression: Compression | EllipsisType = ..., max_message_size: int | None | EllipsisType = ...,
    ) -> View | Callable[[Callable[..., Any]], View]:
        """Make a view of a function that is called as ``function(conn, **view_args)``, in the connection's thread.

        When it returns, the connection is closed: with 1000, or with 4000 and the status if it returned a response of
        300 and more or raised an HTTPException, as ``abort(403)`` does: 4403. The decorator comes last, so that
        others decide before the handshake is answered::

            @app.route("/chat/<room>", websocket=True)
            @login_required
            @ws.handler                             # or @ws.handler(subprotocols=["chat"])
            def chat(conn, room): ...

        Args:
            function: the function; None to get a decorator for one.
            origins: as of :class:`wsthread.Upgrader`, see :class:`WebSockets`.
            subprotocols: likewise.
            require_subprotocol: likewise.
            compression: likewise.
            max_message_size: likewise, as of :class:`wsthread.Manager`.

        Raises:
            TypeError: the function is no function, takes no connection, or is ``async def``; it needs a thread. Or an
                option is of the wrong type, or comes too late, for what is a view already.
            ValueError: an option makes no sense.
        """
        route = RouteOptions.of(
            max_message_size, origins=origins, subprotocols=subprotocols,
            require_subprotocol=require_subprotocol, compression=compression)
        return functools.partial(_view_of, route) if function is None else _view_of(route, function)

    def route(
        self, rule: str, bp: Blueprint | None = None, *, origins: Origins | EllipsisType = ...,
        subprotocols: Sequence[str] | EllipsisType = ..., require_subprotocol: bool | EllipsisType = ...,
        compression: Compression | EllipsisType = ..., max_message_size: int | None | EllipsisType = ...,
        **options: Any,
    ) -> Callable[[Callable[..., Any]], View]:
        """Decorate a handler, and add a rule for it to a blueprint or to each application of this object.

        Within an application factory it adds the rule to the application that was last given to :meth:`init_app`, and
        it takes the place of the one that the factory has made with the same endpoint for applications before.

        Args:
            rule: as for ``app.route``; its converters' values are passed to the handler.
            bp: the blueprint. None for the applications, also those that come later.
            origins: as for :meth:`handler`.
            subprotocols: likewise.
            require_subprotocol: likewise.
            compression: likewise.
            max_message_size: likewise.
            **options: as for ``app.route``: ``endpoint``, ``subdomain``, ``defaults``.

        Raises:
            TypeError: as for :meth:`handler`.
            ValueError: likewise.
        """
        route = RouteOptions.of(
            max_message_size, origins=origins, subprotocols=subprotocols,
            require_subprotocol=require_subprotocol, compression=compression)

        def decorate(function: Callable[..., Any]) -> View:
            view = _view_of(route, function)
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

    def upgrade(
        self, manager: Manager, *, origins: Origins | EllipsisType = ...,
        subprotocols: Sequence[str] | EllipsisType = ..., require_subprotocol: bool | EllipsisType = ...,
        compression: Compression | EllipsisType = ..., max_message_size: int | None | EllipsisType = ...,
    ) -> Response:
        """Return the response that gives the current request's connection to a manager, or refuses it.

        ::

            @app.route("/chat", websocket=True)
            @login_required
            def chat():
                return ws.upgrade(manager)

        Args:
            manager: the manager.
            origins: as for :meth:`handler`.
            subprotocols: likewise.
            require_subprotocol: likewise.
            compression: likewise.
            max_message_size: likewise.

        Raises:
            TypeError: an option is of the wrong type.
            ValueError: an option makes no sense.
        """
        return _upgrade(manager, RouteOptions.of(
            max_message_size, origins=origins, subprotocols=subprotocols,
            require_subprotocol=require_subprotocol, compression=compression))

    def mount(
        self, rule: str, manager: Manager, bp: Blueprint | None = None, endpoint: str | None = None, *,
        origins: Origins | EllipsisType = ..., subprotocols: Sequence[str] | EllipsisType = ...,
        require_subprotocol: bool | EllipsisType = ...,
        compression: Compression | EllipsisType = ..., max_message_size: int | None | EllipsisType = ...,
        **options: Any,
    ) -> None:
        """Add a rule whose connections a manager gets, such as a :class:`wsthread.ListenableManager`.

        Args:
            rule: as for ``app.route``.
            manager: its options are its own, those of the upgrader are in the configuration.
            bp: the blueprint. None for the applications, also those that come later.
            endpoint: default: the words of the rule, joined by underscores.
            origins: as for :meth:`handler`.
            subprotocols: likewise.
            require_subprotocol: likewise.
            compression: likewise.
            max_message_size: likewise.
            **options: as for ``app.route``.

        Raises:
            TypeError: an option is of the wrong type.
            ValueError: an option makes no sense.
        """
        if endpoint is None:
            endpoint = re.sub(r"\W+", "_", rule).strip("_") or "websocket"
        route = RouteOptions.of(
            max_message_size, origins=origins, subprotocols=subprotocols,
            require_subprotocol=require_subprotocol, compression=compression)
        self._add_rule(rule, lambda **view_args: _upgrade(manager, route), bp, {"endpoint": endpoint, **options})

    def _add_rule(self, rule: str, view: View, bp: Blueprint | None, options: dict[str, Any]) -> None:
        if bp is not None:
            bp.add_url_rule(rule, view_func=view, **{"websocket": True, **options})
            return
        options = {"websocket": True, **options}
        new = _Rule(rule, options.get("endpoint") or view.__name__, view, options, bool(self._apps))
        newest = self._newest() if self._newest is not None else None
        for app, before in self._apps.items():
            if app is not newest:
                new.add_to_older(app)
            elif new.endpoint in before:
                # A factory, which has made that rule for another application.
                before.discard(new.endpoint)
                self._rules = [one for one in self._rules if one.endpoint != new.endpoint or one.view is view]
                app.view_functions[new.endpoint] = view
                new.add_to(app)
            else:
                new.add_to(app)
        self._rules.append(new)


class _Rule(NamedTuple):
    """A rule for applications, those there are and those that come.

    Attributes:
        rule: as for ``app.add_url_rule``.
        endpoint: likewise.
        view: likewise.
        options: likewise.
        is_late: whether there were applications before it, so that a factory may have made it.
    """

    rule: str
    endpoint: str
    view: View
    options: dict[str, Any]
    is_late: bool

    def add_to(self, app: Flask) -> None:
        """Add it, unless it is there."""
        rules = [(rule.endpoint, rule.rule, rule.defaults) for rule in app.url_map.iter_rules()]
        is_there = (self.endpoint, self.rule, self.options.get("defaults")) in rules
        if not is_there or app.view_functions.get(self.endpoint) is not self.view:
            app.add_url_rule(self.rule, **{**self.options, "endpoint": self.endpoint, "view_func": self.view})

    def add_to_older(self, app: Flask) -> None:
        """Add it to an application that may have one from its own factory, or may have served already."""
        if app.view_functions.get(self.endpoint, self.view) is self.view:
            with suppress(AssertionError):  # Flask takes no rules after the first request.
                self.add_to(app)


class WebSocketClient(FlaskClient):
    """A test client with WebSockets.

    It is also a base for those of your own, for the sake of type checkers::

        class Client(WebSocketClient, FlaskLoginClient): ...

        app.test_client_class = Client
    """

    def websocket(self, path: str = "/", **options: Any) -> testing.WebSocket:
        """Open a WebSocket with the cookies of this client, see :func:`wsthread.testing.connect`."""
        return testing.connect(self, path, **options)


def _make_client(make: Callable[..., FlaskClient], *args: Any, **options: Any) -> FlaskClient:
    """Call an application's ``test_client``, and let the client have WebSockets, of whatever class it is."""
    client = make(*args, **options)
    if not hasattr(client, "websocket"):
        setattr(client, "websocket", functools.partial(testing.connect, client))
    return client


class _RouteManager(Manager):
    """Runs the handlers of an application's routes."""

    def serve(self, conn: Connection) -> None:
        """Run the handler."""
        link = link_of(conn)
        assert isinstance(link.scope, FlaskScope)
        link.callback = "handler", clock.now()
        link.scope.handle(conn)


def _view_of(route: RouteOptions, function: Callable[..., Any]) -> View:
    if getattr(function, _IS_VIEW, False) is True:  # A mock has any attribute.
        if route:
            raise TypeError(f"{function!r} is a view already; options belong to what made it, ws.handler or ws.route")
        return function
    check_function(function, "handler", ("conn",), more=True)

    @functools.wraps(function)
    def view(*args: Any, **kwargs: Any) -> ResponseReturnValue:
        return _upgrade(None, route, lambda conn: function(conn, *args, **kwargs))

    setattr(view, _IS_VIEW, True)
    return view


def _upgrade(
    manager: Manager | None, route: RouteOptions, handler: Callable[[Connection], Any] | None = None,
) -> Response:
    app = _behind(current_app)
    upgrader = configuration_of(app).upgrader(manager, route)
    scope = FlaskScope(app, _behind(session), _behind(g), handler)
    return upgrader.upgrade(request, scope=scope, max_message_size=route.max_message_size)


def _behind(proxy: Any) -> Any:
    """Return what one of Flask's proxies stands for at the moment."""
    return proxy._get_current_object()
