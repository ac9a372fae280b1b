"""WebSockets in the tests of a Django project: what :mod:`wsthread.testing` does, with Django's test client.

::

    from wsthread.django_testing import connect

    class ChatTest(TransactionTestCase):
        def test_chat(self):
            self.client.force_login(self.ada)
            with connect(self.client, "/ws/chat/7") as ws:
                ws.send("hello")
                assert ws.receive() == "ada: hello"

Callbacks run in the connection's thread, which has a database connection of its own. It does not see what a TestCase
has in its transaction, so tests whose callbacks use the database are TransactionTestCases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.core.handlers.wsgi import WSGIHandler
from django.test import Client
from werkzeug.datastructures import Headers

from . import testing

_HOST = "testserver"  # What Django's test client calls itself, and what its test runner adds to ALLOWED_HOSTS.


def connect(
    client: Client, path: str = "/", *, headers: Mapping[str, str] | Iterable[tuple[str, str]] = (), **options: Any,
) -> testing.WebSocket:
    """Open a WebSocket with the cookies of a test client, in process, through all middleware.

    Args:
        client: it sends its cookies, and keeps those that the 101 sets.
        path: of the request, with the query string if there is one; or an absolute URL.
        headers: more headers of the request, such as ``Origin``.
        **options: as for :func:`wsthread.testing.connect`.

    Returns:
        The open WebSocket; it is a context manager that closes it.

    Raises:
        Refused: the answer was no 101; the exception has it.
        TimeoutError: nothing came over the socket behind a 101.
    """
    sent = Headers(headers)
    cookies = "; ".join(f"{name}={morsel.coded_value}" for name, morsel in client.cookies.items())
    if cookies:
        sent.add("Cookie", cookies)
    options.setdefault("base_url", f"http://{_HOST}")
    websocket = testing.connect(WSGIHandler(), path, headers=sent, **options)
    for name, value in websocket.headers:
        if name.lower() == "set-cookie":
            client.cookies.load(value)
    return websocket
