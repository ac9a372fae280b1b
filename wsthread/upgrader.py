"""From an HTTP request to a running WebSocket: handshake, detach, connection, manager.

The handshake is an ordinary response of the application. :meth:`Upgrader.upgrade` only checks the request and
returns that response; the socket is taken when the WSGI server calls it. Until then everything is as for any
request: ``abort(401)`` refuses, ``after_request`` and the session may add headers, and they are on the 101.

The 101 is sent when the server closes the response, which is the end of a request (PEP 3333): frameworks have torn
down by then what they had made for it. So nothing of the application runs for the connection before its request is
over.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from types import EllipsisType
from typing import Any

from werkzeug.datastructures import Headers
from werkzeug.wrappers import Request, Response

from . import servers
from .connection import Connection, link_of
from .detach import Detached
from .exceptions import DetachError, HandshakeError
from .link import Link, Scope
from .logs import tell_refusal
from .manager import Manager, hub_of
from .options import UpgraderOptions, argument, takes
from .snapshot import Snapshot
from .tls import CERTIFICATE_KEY, certificate_of
from .wire.deflate import Agreement, agree
from .wire.handshake import check_origin, check_request, encode_response, response_headers, select_subprotocol, tokens
from .wire.resume import SUBPROTOCOL

# What frameworks add to every response and what means nothing on a 101 (RFC 9110 8.6, RFC 9112 6.1).
_NOT_ON_A_101 = frozenset({"content-type", "content-length", "transfer-encoding"})
# The headers that a handshake is judged by: as the environ calls them, and in lower case.
_HEADERS = [("CONTENT_LENGTH", "content-length"), *((f"HTTP_{name.replace('-', '_').upper()}", name) for name in (
    "connection", "host", "origin", "sec-websocket-extensions", "sec-websocket-key", "sec-websocket-protocol",
    "sec-websocket-version", "transfer-encoding", "upgrade", "x-forwarded-host"))]


@dataclass(frozen=True)
class UpgraderArguments(UpgraderOptions):
    """What an :class:`Upgrader` may be told: the manager by position, the options by name."""

    manager: Manager = field(metadata=argument("The manager that gets the connections."))


class Upgrader:
    """Turns requests into WebSocket connections of a manager.

    It is a WSGI application too, so any WSGI application can get a WebSocket beside it::

        application = DispatcherMiddleware(application, {"/ws": Upgrader(manager)})
    """

    @takes(UpgraderArguments)
    def __init__(self, manager: Manager, **options: Any) -> None:
        """Make an upgrader.

        Args:
            **options: those of :class:`UpgraderArguments`.

        Raises:
            TypeError: an unknown option, or one of the wrong type.
            ValueError: one that could never do anything, such as an origin without a scheme.
        """
        self._manager = manager
        self._options = UpgraderOptions(**options)

    def upgrade(
        self,
        request: Request | dict[str, Any],
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        scope: Scope | None = None,
        max_message_size: int | None | EllipsisType = ...,
    ) -> Response:
        """Return the response that makes a WebSocket out of a request, or refuses it.

        Args:
            request: a Werkzeug or Flask request, or a WSGI environ.
            headers: more headers for the 101.
            scope: ``scope(conn)`` returns a context manager within which each callback of this connection runs, or
                the handler of a blocking manager. None for nothing; :mod:`wsthread.flask` gives Flask's contexts.
            max_message_size: for this connection, as the option of :class:`wsthread.Manager`. Default: the manager's.

        Returns:
            A 101, to be returned from the view as it is. A refusal is a response too, 400, 403, 405, 426 or 501, with
            a sentence that tells what to change, which is logged as well. A 101 may still become a 429 or a 503 when
            the server calls it.

        Raises:
            ValueError: the ``max_message_size`` makes no sense.
        """
        if not isinstance(request, Request):
            request = Request(request, populate_request=False)
        try:
            key, subprotocol, agreement, is_resuming = self._check(request)
        except HandshakeError as error:
            return self._refuse(request.environ, error)
        except DetachError as error:
            return self._refuse(request.environ, HandshakeError(HTTPStatus.NOT_IMPLEMENTED, f"{error}."))
        response = Response(status="101 SWITCHING PROTOCOLS")
        extension = None if agreement is None else agreement.extension
        selected = SUBPROTOCOL if is_resuming else subprotocol  # In its first notice the client is told of the other.
        response.headers = Headers(response_headers(key, selected, extension))
        if headers:
            response.headers.extend(Headers(headers))
        options = None
        if max_message_size is not ...:
            options = replace(self._manager.options, max_message_size=max_message_size)
        prepare = functools.partial(
            hub_of(self._manager).prepare, Snapshot(request), subprotocol, agreement, scope, options, is_resuming)
        setattr(response, "get_wsgi_response", _Switch(response, prepare, self._refuse))
        return response

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Upgrade a request as a WSGI application (PEP 3333)."""
        return self.upgrade(environ)(environ, start_response)

    def _refuse(self, environ: dict[str, Any], error: HandshakeError) -> Response:
        hub_of(self._manager).counters.refuse(f"{error.status.value} {error.status.phrase}")
        tell_refusal(environ, error)
        response = Response.from_app(error, environ)
        if not servers.takes_upgrade(environ):
            response.headers.pop("Upgrade", None)
        return response

    def _check(self, request: Request) -> tuple[str, str | None, Agreement | None, bool]:
        environ, options = request.environ, self._options
        headers = {name: environ[key] for key, name in _HEADERS if key in environ}
        version = environ.get("SERVER_PROTOCOL", "")
        # Without a key it is a request like any other, on every server. HTTP/2 has no sockets to be found.
        if "sec-websocket-key" in headers and not version.startswith("HTTP/2"):
            _, shown = servers.find(environ)
            certificate = certificate_of(shown)
            if certificate is not None:
                environ[CERTIFICATE_KEY] = certificate
        key = check_request(environ["REQUEST_METHOD"], version, headers)
        check_origin(headers.get("origin"), request.host, options.origins, headers.get("x-forwarded-host"))
        offered = tokens(headers.get("sec-websocket-protocol", ""))
        subprotocol = select_subprotocol(offered, options.subprotocols, options.require_subprotocol)
        offers = headers.get("sec-websocket-extensions")
        compression = options.compression_for(environ) if offers else None
        agreement = None if compression is None or offers is None else agree(compression, offers)
        return key, subprotocol, agreement, SUBPROTOCOL in offered


class _Switch:
    """What happens when the WSGI server calls a 101: the socket is taken.

    It hangs on the response object and not on a subclass of Response, because Flask turns a response of another
    class into its own class.
    """

    def __init__(
        self,
        response: Response,
        prepare: Callable[[], Connection],
        refuse: Callable[[dict[str, Any], HandshakeError], Response],
    ) -> None:
        self._response = weakref.ref(response)  # It leads here, and is to go without the cyclic collector.
        self._prepare = prepare
        self._refuse = refuse

    def __call__(self, environ: dict[str, Any]) -> tuple[Iterable[bytes], str, list[tuple[str, str]]]:
        """Detach the socket; return a 101 for the server's dummy, whose end sends ours.

        In the form of Werkzeug's ``Response.get_wsgi_response``.
        """
        response = self._response()
        assert response is not None
        headers = [(name, value) for name, value in response.headers if name.lower() not in _NOT_ON_A_101]
        data = encode_response(headers)
        try:
            link = link_of(self._prepare())
            try:
                return self._open(environ, link, data, response)
            except BaseException:
                link.abandon()
                raise
        except HandshakeError as error:
            return self._refuse(environ, error).get_wsgi_response(environ)

    @staticmethod
    def _open(
        environ: dict[str, Any], link: Link, data: bytes, response: Response,
    ) -> tuple[Iterable[bytes], str, list[tuple[str, str]]]:
        try:
            detached = Detached(environ)
        except OSError as error:
            raise HandshakeError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"No more connections: {error.strerror}. Raise the limit for open files (ulimit -n).",
                [("Retry-After", "5")], cause="descriptors") from error
        try:
            # Nobody reads these headers. Some servers take exception to hop-by-hop ones, and validators to no
            # Content-Type.
            ignored = [("Content-Type", "text/plain"), *detached.server.dummy_headers]
            body = _Body(response, link, detached, data)
            return body, "101 Switching Protocols", ignored
        except BaseException:
            detached.give_up()
            raise


class _Body:
    """What the server iterates over as the body of its 101, and closes at the end of the request.

    Where an exception, such as one of a teardown function, keeps the server from getting it, nobody closes it, and it
    ends with its last reference.

    Args:
        response: the application's 101, to be closed.
        link: the connection, to be opened then.
        detached: the socket that was the server's.
        data: what the client gets first.
    """

    _link: Link | None = None  # When not even __init__ could be called, there is nothing to end.

    def __init__(self, response: Response, link: Link, detached: Detached, data: bytes) -> None:
        self._response = response
        self._detached = detached
        self._data = data
        self._link = link

    def __iter__(self) -> Iterator[bytes]:
        return iter((b"",))

    def close(self) -> None:
        """Note that the request is over."""
        link, self._link = self._link, None
        if link is None:
            return
        detached = self._detached
        try:
            self._response.close()
        finally:
            try:
                detached.release()
                link.open(detached.transport, self._data, detached.unread)
            except BaseException:
                try:
                    detached.transport.close()
                finally:
                    link.abandon()  # Its thread may still wait.
                raise

    def __del__(self) -> None:
        if self._link is not None:
            self.close()
