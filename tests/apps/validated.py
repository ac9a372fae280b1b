"""The echo application within the validator of the standard library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from wsgiref.validate import validator

from apps.echo import app as echo

_validated: Any = validator(echo)


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Keep from the validator what Werkzeug's server itself does wrong: this is an int there."""
    if "REMOTE_PORT" in environ:
        environ["REMOTE_PORT"] = str(environ["REMOTE_PORT"])
    result: Iterable[bytes] = _validated(environ, start_response)
    return result
