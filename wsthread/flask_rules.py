"""How handshakes find their rules in Flask, and what they are answered where they do not.

No WebSocket client follows a redirect. So where Werkzeug's rules would redirect, such as for a missing slash, the
handshake gets the rule that it would find there. And where a handshake or a plain request meets a rule of the other
kind, for which Werkzeug has a bare 400, the answer tells what to change, and so does the log.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

from flask import Flask, current_app, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import BadRequest, HTTPException
from werkzeug.routing import MapAdapter, RequestRedirect, WebsocketMismatch

from .configuration import Configuration
from .exceptions import REFUSED_HEADER
from .flask_contexts import own_argument
from .logs import tell_refusal
from .wire.handshake import tokens

_MOST_REDIRECTS = 5  # One for slashes that are too many, one for one that is missing, and some of the application's.


def configuration_of(app: Flask) -> Configuration:
    """Return the configuration of an application.

    Raises:
        RuntimeError: it has no WebSockets.
    """
    if "wsthread" not in app.extensions:
        raise RuntimeError(f"{app.name} has no WebSockets yet: call init_app(app) of the extension")
    configuration: Configuration = app.extensions["wsthread"]
    return configuration


def follow_redirects(app: Flask, **extra: Any) -> None:
    """Give a handshake the rule that Werkzeug would redirect it to, and the path.

    It receives ``request_started``, before anything else looks at the rule: the functions of a blueprint, which may
    decide who gets in, are chosen by it.
    """
    error = request.routing_exception
    if not isinstance(error, RequestRedirect) or "websocket" not in _protocols():
        return
    adapter = app.create_url_adapter(request)
    assert adapter is not None
    try:
        for _ in range(_MOST_REDIRECTS):
            path = _path_here(error.new_url, adapter)
            if path is None:
                break
            request.path, request.environ["PATH_INFO"] = path, path.encode().decode("latin-1")  # PEP 3333
            try:
                request.url_rule, values = adapter.match(path, return_rule=True)
            except RequestRedirect as another:
                error = another
            else:
                request.view_args, request.routing_exception = dict(values), None
                return
    except HTTPException as other:
        request.routing_exception = other
        return
    request.routing_exception = _refusal(
        f"This address redirects to {error.new_url}, and clients of WebSockets follow no redirects. Connect to that.")


def _path_here(url: str, adapter: MapAdapter) -> str | None:
    """Return the path of an URL within the application, None when it is outside."""
    parts, root = urlsplit(url), adapter.script_name.rstrip("/")
    path = unquote(parts.path)
    return path[len(root):] if parts.netloc == adapter.get_host(None) and path.startswith(f"{root}/") else None


def _protocols() -> list[str]:
    return [token.lower() for token in tokens(request.headers.get("Upgrade", ""))]


def answer_mismatch(error: WebsocketMismatch) -> ResponseReturnValue:
    """Answer a plain request for a WebSocket, or a handshake for a page."""
    response = configuration_of(current_app).upgrader().upgrade(request)
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        return response
    app: Any = current_app
    # Whoever handles a 400 else is to have it.
    answer: ResponseReturnValue = app.handle_http_exception(*own_argument(), _refusal(_reason(error)))
    return answer


def _reason(error: WebsocketMismatch) -> str:
    """Tell what keeps a handshake that is as it should be from its rule."""
    upgrade = request.headers.get("Upgrade", "")
    if upgrade.lower() != "websocket":  # A list of protocols (RFC 9110 7.8), which the rules do not look into.
        return (
            f"A rule with websocket=True matches requests with Upgrade: websocket alone, and Upgrade is {upgrade!r}. "
            "Let the client, or the proxy that adds the rest, send only that.")
    adapter = current_app.create_url_adapter(request)
    assert adapter is not None
    try:
        rule, _ = adapter.match(websocket=False, return_rule=True)
    except HTTPException:  # Such as one for POST only.
        return error.description or ""
    return (
        f"The rule {rule.rule!r} is for pages. If its view is to open WebSockets, with ws.handler or ws.upgrade, say "
        f"so: @app.route({rule.rule!r}, websocket=True).")


class _Refusal(BadRequest):
    """A refusal that error handlers of the application may answer in their own way."""

    def get_headers(self, *args: Any, **options: Any) -> list[tuple[str, str]]:
        """Return the headers of a BadRequest, and ours."""
        return [*super().get_headers(*args, **options), (REFUSED_HEADER, "request")]


def _refusal(reason: str) -> BadRequest:
    error = _Refusal(reason)
    tell_refusal(request.environ, error)
    return error
