"""The opening handshake as a response of Django.

A view returns a :class:`Handshake`, a 101 to which middleware may add headers and cookies as to any response. When all
middleware is done, Django's WSGI handler sets an attribute of the response that tells its own class, right before it
reads the status and the headers. At that moment the socket is taken, so a 101 may still become a 503. The 101 itself is
sent when the server closes the response, after the ``request_finished`` signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse
from werkzeug.wrappers import Response

from .servers.refused import ASGI


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


def wsgi_environ(request: HttpRequest) -> dict[str, Any]:
    """Return the environ of a request as the WSGI server made it.

    Django has decoded the paths in place, and the rest of the library expects them as they are in WSGI (PEP 3333).
    """
    environ = request.META
    if not isinstance(request, WSGIRequest):
        environ = {**environ, "SERVER_SOFTWARE": ASGI, "SERVER_PROTOCOL": "HTTP/1.1"}
    paths = {name: environ.get(name, "").encode().decode("latin-1") for name in ("PATH_INFO", "SCRIPT_NAME")}
    return {**environ, **paths}
