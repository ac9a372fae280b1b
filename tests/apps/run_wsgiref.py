"""The standard library's server on any WSGI application: ``python -m apps.run_wsgiref module:attribute``."""

from __future__ import annotations

import sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server

from werkzeug.utils import import_string


class ThreadedServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


if __name__ == "__main__":
    with make_server("127.0.0.1", 0, import_string(sys.argv[1]), ThreadedServer) as server:
        print(f"Running on http://127.0.0.1:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
