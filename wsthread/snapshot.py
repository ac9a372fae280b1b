"""What a connection keeps of its opening handshake, for as long as it lives.

It is the environ, without the objects of the server and without a body. An application may ask for a request object
(``conn.request``). Most never do, so that is made when it is first asked for: of the same class as the handshake's,
with what Flask's router has found.

Any thread may call anything here.
"""

from __future__ import annotations

import io
import threading
from typing import Any

from werkzeug.wrappers import Request

from . import servers
from .locks import taking

# How the names begin of what belongs to the request (PEP 3333) and to its server; a connection must not keep it alive.
_DROPPED = ("wsgi.", *servers.OWN_KEYS)
# Servers build the strings of a request anew each time; one copy of the usual ones does for all connections.
_USUAL = {text: text for text in (
    "HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING", "HTTP_ACCEPT_LANGUAGE", "HTTP_AUTHORIZATION", "HTTP_CACHE_CONTROL",
    "HTTP_CONNECTION", "HTTP_COOKIE", "HTTP_HOST", "HTTP_ORIGIN", "HTTP_PRAGMA", "HTTP_SEC_FETCH_DEST",
    "HTTP_SEC_FETCH_MODE", "HTTP_SEC_FETCH_SITE", "HTTP_SEC_WEBSOCKET_EXTENSIONS", "HTTP_SEC_WEBSOCKET_KEY",
    "HTTP_SEC_WEBSOCKET_PROTOCOL", "HTTP_SEC_WEBSOCKET_VERSION", "HTTP_UPGRADE", "HTTP_USER_AGENT",
    "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PROTO", "HTTP_X_REAL_IP",
    "GET", "HTTP/1.1", "http", "https", "websocket", "Upgrade", "keep-alive, Upgrade", "13", "no-cache",
    "permessage-deflate; client_max_window_bits", "gzip, deflate, br, zstd", "same-origin",
)}
_NO_BODY = io.BytesIO()
_making = threading.Lock()  # Guards which of several request objects counts.


class Snapshot:
    """The opening handshake of one connection.

    Args:
        request: the request of the handshake, as long as that lasts.

    Attributes:
        environ: what is kept of it (PEP 3333), without body.
    """

    __slots__ = ("environ", "_class", "_url_rule", "_view_args", "_request")

    def __init__(self, request: Request) -> None:
        environ, one_copy = request.environ, _USUAL.get
        kept = {
            one_copy(name, name): one_copy(value, value) if isinstance(value, str) else value
            for name, value in environ.items() if name in _USUAL or not name.startswith(_DROPPED)}
        kept["wsgi.url_scheme"] = environ["wsgi.url_scheme"]
        kept["wsgi.input"] = _NO_BODY
        self.environ: dict[str, Any] = kept
        self._class = request.__class__  # type() would be that of Flask's proxy.
        self._url_rule = getattr(request, "url_rule", None)  # Flask's, as the next one.
        self._view_args = getattr(request, "view_args", None)
        self._request: Any = None

    @property
    def request(self) -> Any:
        """The request object, always the same one."""
        if self._request is None:
            made = self._make()
            with taking(_making):
                if self._request is None:  # Else another thread was faster.
                    self._request = made
        return self._request

    @request.setter
    def request(self, request: object) -> None:
        self._request = request

    def _make(self) -> Request:
        request = self._class(self.environ, populate_request=False)
        for name, found in (("url_rule", self._url_rule), ("view_args", self._view_args)):
            if found is not None:
                setattr(request, name, found)
        return request
