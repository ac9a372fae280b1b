"""Bottle's server on any WSGI application: ``python -m apps.run_bottle port module:attribute``."""

from __future__ import annotations

import sys

import bottle
from werkzeug.utils import import_string

if __name__ == "__main__":
    bottle.run(import_string(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]))
