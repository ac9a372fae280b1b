"""Werkzeug's server on any WSGI application: ``python -m apps.run_simple module:attribute``."""

from __future__ import annotations

import sys

from werkzeug.serving import run_simple
from werkzeug.utils import import_string

if __name__ == "__main__":
    run_simple("127.0.0.1", 0, import_string(sys.argv[1]), threaded=True)
