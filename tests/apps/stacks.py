"""What people put around their applications, and applications without Flask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from apps import views
from werkzeug.debug import DebuggedApplication
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Request, Response

from wsthread import Upgrader

upgrader = Upgrader(views.manager)


def timed(application: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an application in a generator, as tracing and timing middleware does."""

    def middleware(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        statuses: list[str] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            statuses.append(status)
            return start_response(status, [*headers, ("X-Timed", "1")], exc_info)

        iterable = application(environ, start)
        try:
            yield from iterable
        finally:
            if hasattr(iterable, "close"):
                iterable.close()
            views.events.append(["timed", statuses[0]])

    return middleware


@Request.application
def page(request: Request) -> Response:
    """Be a plain Werkzeug application."""
    return Response(f"page {request.path}")


def bare(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Be a WSGI application of no framework."""
    if environ["PATH_INFO"].startswith("/ws"):
        return upgrader(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"bare"]


flask_debugged = DebuggedApplication(views.app, evalex=True)
flask_proxied = ProxyFix(views.app, x_for=1, x_proto=1, x_host=1, x_prefix=1)
flask_dispatched = DispatcherMiddleware(views.app, {"/ws": upgrader})
flask_below = DispatcherMiddleware(page, {"/below": views.app})
flask_timed = timed(views.app)
everything = timed(DebuggedApplication(ProxyFix(flask_dispatched, x_for=1, x_proto=1, x_host=1), evalex=True))
werkzeug_dispatched = DispatcherMiddleware(page, {"/ws": upgrader})
