"""The opening handshake as a response of Django, and what handshakes are answered instead of a redirect.

A view returns a :class:`Handshake`, a 101 to which middleware may add headers and cookies as to any response. When all
middleware is done, Django's WSGI handler sets an attribute of the response that tells its own class, right before it
reads the status and the headers. At that moment the socket is taken, so a 101 may still become a 503. The 101 itself is
sent when the server closes the response, after the ``request_finished`` signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest, HttpResponse
from werkzeug.wrappers import Response

from .exceptions import HandshakeError
from .logs import tell_refusal
from .wire.handshake import tokens


class Handshake(HttpResponse):
    """A 101 that takes the socket when Django gives it to the WSGI server.

    Args:
        environ: the request's, fit for WSGI.
        upgrade: what :meth:`wsthread.Upgrader.upgrade` returned, a 101.
    """

    def __init__(self, environ: dict[str, Any], upgrade: Response) -> None:
        self._body: Iterable[bytes] | None = None
        self._handler: type | None = None
        super().__init__(status=upgrade.status_code)
        self._environ = environ
        self._upgrade = upgrade

    @property
    def _handler_class(self) -> type | None:
        """The class of Django's handler; None until it is done with the response."""
        return self._handler

    @_handler_class.setter
    def _handler_class(self, handler: type | None) -> None:
        self._handler = handler
        if handler is not None:
            self._switch()

    def _switch(self) -> None:
        """Take the socket, and become what the server is to write: to its dummy, or to the client if that failed."""
        self._upgrade.headers.extend([
            *self.items(), *(("Set-Cookie", cookie.OutputString()) for cookie in self.cookies.values())])
        body, status, headers = self._upgrade.get_wsgi_response(self._environ)
        self.status_code = int(status.partition(" ")[0])
        if self.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            self._body = body
            self.cookies.clear()
            for name, _ in list(self.items()):
                del self[name]
        else:
            self.content = b"".join(body)
        for name, value in headers:
            self[name] = value

    def __iter__(self) -> Iterator[bytes]:
        return super().__iter__() if self._body is None else iter(self._body)

    def close(self) -> None:
        """End the request, and begin with the WebSocket."""
        try:
            super().close()
        finally:
            body, self._body = self._body, None
            end: Callable[[], None] | None = getattr(body, "close", None)
            if end is not None:
                end()


def refusal(response: Response) -> HttpResponse:
    """Return a refusal of the upgrader as one of Django's responses."""
    return HttpResponse(response.get_data(), status=response.status_code, headers=dict(response.headers))


def wsgi_environ(request: Any) -> dict[str, Any] | None:
    """Return the environ of a request as the WSGI server made it; None when there is no such server.

    Django has decoded the paths in place, and the rest of the library expects them as they are in WSGI (PEP 3333).
    """
    environ: dict[str, Any] | None = getattr(request, "environ", None)
    if environ is None:
        return None
    paths = {name: environ[name].encode().decode("latin-1") for name in ("PATH_INFO", "SCRIPT_NAME")}
    return {**environ, **paths}


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
        tell_refusal(wsgi_environ(request) or {}, error)
        return HttpResponse(f"{error.reason}\n", status=error.status, content_type="text/plain; charset=utf-8")


def _error_for(status: int, location: str, user: Any) -> HandshakeError:
    if status in (HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.PERMANENT_REDIRECT):
        return HandshakeError(
            HTTPStatus.BAD_REQUEST,
            f"This address redirects to {location}, and clients of WebSockets follow no redirects. Connect to that.")
    if getattr(user, "is_authenticated", False):
        return HandshakeError(
            HTTPStatus.FORBIDDEN, f"The one who is logged in may not connect; a page would be redirected to {location}.")
    return HandshakeError(
        HTTPStatus.UNAUTHORIZED, f"Nobody is logged in; a page would be redirected to {location}. Log in first.")
