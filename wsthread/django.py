"""WebSockets in Django's URLconf.

::

    from wsthread import ListenableManager
    from wsthread.django import websocket

    manager = ListenableManager()

    @websocket
    def echo(conn, name):                       # a function for each connection, in the connection's thread
        for message in conn:
            conn.send(f"{name}: {message}")

    urlpatterns = [
        path("ws/echo/<name>", echo),
        path("ws/chat/<room>", login_required(websocket(manager))),     # or callbacks, of a manager
    ]

The handshake is an ordinary request: middleware, decorators and exceptions do what they always do, and what they add is
on the 101, see :mod:`wsthread.django_handshake`. That request is over at the 101. ``conn.request`` is its HttpRequest,
and :mod:`wsthread.django_scope` tells what later pieces of code find around them.

The settings have a key for each option, its name in upper case behind ``WSTHREAD_``, as in Flask; ``docs/options.rst``
lists them. They are read by the first handshake, or the first use of :func:`get_manager`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from types import EllipsisType
from typing import Any, TypeAlias, overload
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.http import HttpRequest, HttpResponse
from django.utils.http import is_same_domain
from werkzeug.wrappers import Response

from . import clock
from .callbacks import check_function
from .configuration import Configuration, RouteOptions
from .connection import Connection, link_of
from .django_handshake import Handshake, refusal, wsgi_environ
from .django_scope import DjangoScope
from .exceptions import HandshakeError
from .logs import tell_refusal
from .manager import Manager
from .options import Compression
from .wire.handshake import tokens
from .wire.origins import Origins, is_same_origin

#: What answers a request.
View: TypeAlias = Callable[..., HttpResponse]

_PREFIX = "WSTHREAD_"
_reading = threading.RLock()  # So that there is one manager.


# What an application calls


@overload
def websocket(
    target: Manager | Callable[..., Any], *, origins: Origins | EllipsisType = ...,
    subprotocols: Sequence[str] | EllipsisType = ..., require_subprotocol: bool | EllipsisType = ...,
    compression: Compression | EllipsisType = ..., max_message_size: int | None | EllipsisType = ...,
) -> View: ...


@overload
def websocket(
    target: None = None, *, origins: Origins | EllipsisType = ..., subprotocols: Sequence[str] | EllipsisType = ...,
    require_subprotocol: bool | EllipsisType = ..., compression: Compression | EllipsisType = ...,
    max_message_size: int | None | EllipsisType = ...,
) -> Callable[[Manager | Callable[..., Any]], View]: ...


def websocket(
    target: Manager | Callable[..., Any] | None = None, *, origins: Origins | EllipsisType = ...,
    subprotocols: Sequence[str] | EllipsisType = ..., require_subprotocol: bool | EllipsisType = ...,
    compression: Compression | EllipsisType = ..., max_message_size: int | None | EllipsisType = ...,
) -> View | Callable[[Manager | Callable[..., Any]], View]:
    """Make a view that opens WebSockets, for ``path()`` in the URLconf.

    A function may be decorated with it. Decorators of views, such as ``login_required``, stand above.

    Args:
        target: a manager, such as a :class:`wsthread.ListenableManager`, which gets the connections; what the URL has
            is in ``conn.request.resolver_match.kwargs``. Or a function that is called as ``function(conn, **kwargs)``
            with what the URL has, in the connection's thread; when it returns, the connection is closed, with 1000, or
            with 4000 and the status for exceptions that Django answers, such as 4403 for PermissionDenied. None to get
            a decorator for one of them.
        origins: as of :class:`wsthread.Upgrader`; here and below ``...``, the default, stands for the setting.
        subprotocols: likewise.
        require_subprotocol: likewise.
        compression: likewise.
        max_message_size: as of :class:`wsthread.Manager`; ``...`` for that of the manager.

    Raises:
        TypeError: the function is no function, takes no connection, or is ``async def``; it needs a thread. Or an
            option is of the wrong type.
        ValueError: an option makes no sense.
    """
    options = RouteOptions.of(
        max_message_size, origins=origins, subprotocols=subprotocols, require_subprotocol=require_subprotocol,
        compression=compression)
    return functools.partial(_view_of, options) if target is None else _view_of(options, target)


def get_manager() -> Manager:
    """Return the manager of all functions that :func:`websocket` made views of, for broadcasts to their connections.

    There is one in each process. Any thread may call it.

    Raises:
        ImproperlyConfigured: the settings have an unknown ``WSTHREAD_`` key, or a value that makes no sense.
    """
    return _configuration().manager


def messages(conn: Connection) -> Iterator[str | bytes]:
    """Yield messages like ``conn``, and hold no database connection while it waits.

    It is for the function of a view, in its thread. Each message has a database connection of its own, which is opened
    when it is needed.

    Raises:
        RuntimeError: called from elsewhere, or within ``transaction.atomic()``.
    """
    scope = link_of(conn).scope
    if not isinstance(scope, DjangoScope):
        raise RuntimeError("the connection is none of a view")
    return scope.messages(conn)


def request_of(conn: Connection) -> HttpRequest:
    """Return ``conn.request``, for type checkers, which do not know that it is Django's.

    Raises:
        TypeError: it is not, because the connection did not come through :func:`websocket`.
    """
    request: object = conn.request
    if not isinstance(request, HttpRequest):
        raise TypeError(f"conn.request is {request!r}, which is none of Django's")
    return request


class WebSocketMiddleware:
    """Answers a handshake with a sentence where a view, a decorator or middleware would redirect it.

    Clients of WebSockets follow no redirects. So that of ``login_required`` becomes a 401, or a 403 for somebody who is
    logged in and may not; any other a 400 with the address to connect to. Put it first in ``MIDDLEWARE``, so that it
    sees the answers of all others.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self._get_response(request)
        location = response.get("Location")
        upgrade = tokens(request.headers.get("Upgrade", "").lower())
        if location is None or "websocket" not in upgrade or not 300 <= response.status_code < 400:
            return response
        error = _error_for(response.status_code, location, getattr(request, "user", None))
        tell_refusal(wsgi_environ(request), error)
        return refusal(Response.from_app(error, request.META))


# The settings


class _ViewManager(Manager):
    """Runs the functions that are views."""

    def serve(self, conn: Connection) -> None:
        """Run the function."""
        link = link_of(conn)
        assert isinstance(link.scope, DjangoScope)
        link.callback = "handler", clock.now()
        link.scope.handle(conn)


def _configuration() -> Configuration:
    with _reading:
        return _read()


@functools.cache
def _read() -> Configuration:
    found = {name: getattr(settings, name) for name in dir(settings) if name.startswith(_PREFIX)}
    try:
        return Configuration(found, _ViewManager, "Django")
    except ValueError as error:
        raise ImproperlyConfigured(f"WebSockets: {error}") from error


def _forget(*, setting: str, **rest: Any) -> None:
    if setting.startswith(_PREFIX):
        _read.cache_clear()


setting_changed.connect(_forget)  # Tests change settings.


# Handshakes


def _error_for(status: int, location: str, user: Any) -> HandshakeError:
    if status in (HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.PERMANENT_REDIRECT):
        return HandshakeError(
            HTTPStatus.BAD_REQUEST,
            f"This address redirects to {location}, and clients of WebSockets follow no redirects. Connect to that.")
    if getattr(user, "is_authenticated", False):
        return HandshakeError(
            HTTPStatus.FORBIDDEN,
            f"The one who is logged in may not connect; a page would be redirected to {location}.")
    return HandshakeError(
        HTTPStatus.UNAUTHORIZED, f"Nobody is logged in; a page would be redirected to {location}. Log in first.")


def _view_of(options: RouteOptions, target: Manager | Callable[..., Any]) -> View:
    if isinstance(target, Manager):
        manager = target

        def view(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            return _upgrade(request, options, manager, None)

        return view
    check_function(target, "handler", ("conn",), more=True)
    function = target

    @functools.wraps(function)
    def view_of_function(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return _upgrade(request, options, None, lambda conn: function(conn, *args, **kwargs))

    return view_of_function


def _upgrade(
    request: HttpRequest, options: RouteOptions, manager: Manager | None,
    handler: Callable[[Connection], Any] | None,
) -> HttpResponse:
    configuration, environ = _configuration(), wsgi_environ(request)
    host = request.get_host()  # It raises DisallowedHost for those that ALLOWED_HOSTS does not have.
    if options.upgrader.get("origins", getattr(settings, f"{_PREFIX}ORIGINS", None)) is None:
        trusted = {**options.upgrader, "origins": functools.partial(_is_trusted, host)}
        options = RouteOptions(trusted, options.max_message_size)
    scope = DjangoScope(request, handler)
    response = configuration.upgrader(manager, options).upgrade(
        environ, scope=scope, max_message_size=options.max_message_size)
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        return refusal(response)
    return Handshake(environ, response)


def _is_trusted(host: str, origin: str) -> bool:
    """Tell whether a page may connect: one of the same host, or one whose forms Django's check of CSRF would take.

    Raises:
        HandshakeError: it may not.
    """
    if is_same_origin(origin, host) or any(_matches(origin, one) for one in settings.CSRF_TRUSTED_ORIGINS):
        return True
    raise HandshakeError(
        HTTPStatus.FORBIDDEN,
        f"Origin is {origin[:256]!r}, the request was sent to {host[:256]!r}. If that page may connect, add its origin "
        f"to CSRF_TRUSTED_ORIGINS, or to WSTHREAD_ORIGINS for WebSockets only; if a proxy changed the host, let it "
        f"pass the header Host on with its port, or set USE_X_FORWARDED_HOST.")


def _matches(origin: str, trusted: str) -> bool:
    """Tell whether an origin is a trusted one, which may have a wildcard: ``https://*.example.com``."""
    scheme, _, host = trusted.partition("://")
    if "*" not in host:
        return origin == trusted
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme == scheme and is_same_domain(parts.netloc, host.lstrip("*"))
