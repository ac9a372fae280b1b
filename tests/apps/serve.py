"""Servers without a command line for any application: ``python -m apps.serve <server> <options> module:name``."""

from __future__ import annotations

import contextlib
import importlib
import os
import socketserver
import sys
import wsgiref.simple_server
from collections.abc import Callable

from werkzeug.utils import import_string


class Quick(wsgiref.simple_server.WSGIRequestHandler):
    """What everybody has to do who uses it, for it asks the DNS for the client's name."""

    def address_string(self) -> str:
        return str(self.client_address[0])


class Threads(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


def serve_wsgiref(name: str, server_class: type[wsgiref.simple_server.WSGIServer]) -> None:
    with wsgiref.simple_server.make_server(
            "127.0.0.1", 0, import_string(name), server_class, Quick) as server:
        print(f"Serving on http://127.0.0.1:{server.server_port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def serve_bottle(name: str) -> None:
    import bottle

    bottle.run(import_string(name), host="127.0.0.1", port=free_port())


def free_port() -> str:
    """Return a port that nobody listens at for now, for a server that does not tell which one it got.

    It is the same in a process that such a server starts anew.
    """
    if "FREE_PORT" not in os.environ:
        with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
            os.environ["FREE_PORT"] = str(server.server_address[1])
    return os.environ["FREE_PORT"]


def serve_django(name: str, *options: str) -> None:
    """Serve with ``manage.py runserver``, to which an application for it is an application like any other."""
    import django_site
    from django.conf import settings
    from django.core.management import execute_from_command_line

    assert django_site.MIDDLEWARE  # It has the settings.
    settings.WSGI_APPLICATION = name.replace(":", ".")
    settings.DEBUG, settings.ALLOWED_HOSTS = True, ["*"]
    if "WATCHED" in os.environ:  # A module that a test is going to touch.
        importlib.import_module(os.environ["WATCHED"])
    execute_from_command_line(["manage.py", "runserver", f"127.0.0.1:{free_port()}", *options])


SERVERS: dict[str, Callable[..., None]] = {
    "wsgiref": lambda name: serve_wsgiref(name, wsgiref.simple_server.WSGIServer),
    "wsgiref-threads": lambda name: serve_wsgiref(name, Threads),
    "bottle": serve_bottle,
    "runserver": serve_django,
}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](sys.argv[-1], *sys.argv[2:-1])
