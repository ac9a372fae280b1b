"""Reads the configuration of gunicorn: its configuration file, command line and GUNICORN_CMD_ARGS.

gunicorn reads it by its own code, which runs the configuration file but does not import the application. gunicorn is
imported here only, and only when it is asked for.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .settings import Settings


class SettingsError(Exception):
    """The configuration cannot be read; the message tells why."""


def read_settings(arguments: Sequence[str], url: str | None = None) -> Settings:
    """Read the configuration that gunicorn has with a command line. Call it in the directory where gunicorn starts.

    Args:
        arguments: those of gunicorn, with or without ``gunicorn`` or ``python -m gunicorn`` in front; a single one
            that holds blanks is split as a shell does.
        url: the WebSocket that this is about, if known.

    Raises:
        SettingsError: gunicorn is not installed, or refuses the configuration.
    """
    words = shlex.split(arguments[0]) if len(arguments) == 1 else list(arguments)
    as_module = words[1:3] == ["-m", "gunicorn"]
    if as_module:
        words = words[3:]
    elif words and Path(words[0]).name == "gunicorn":
        words = words[1:]
    try:
        import gunicorn
        from gunicorn.app.wsgiapp import WSGIApplication
    except ImportError as error:
        raise SettingsError(f"gunicorn is not installed for this Python ({sys.executable})") from error
    argv, directory, output = sys.argv, os.getcwd(), io.StringIO()
    sys.argv = ["gunicorn", *words]
    try:
        with contextlib.redirect_stderr(output):
            application: Any = WSGIApplication()
    except SystemExit as error:
        raise SettingsError(f"gunicorn refuses its configuration: {output.getvalue().strip()}") from error
    finally:
        sys.argv = argv
        os.chdir(directory)  # It goes to its own.
    return _settings(application.cfg, application.app_uri, gunicorn, as_module, url)


def _settings(cfg: Any, app: str | None, package: Any, as_module: bool, url: str | None) -> Settings:
    allowed = cfg.forwarded_allow_ips
    trusted = allowed.split(",") if isinstance(allowed, str) else list(allowed)
    proxy_protocol = cfg.proxy_protocol  # A bool before 24.1.
    names = {entry.partition(".")[0] for entry in os.listdir(Path(package.__file__).parent)}
    return Settings(
        version=package.__version__,
        worker_class=str(cfg.worker_class_str),
        workers=cfg.workers,
        threads=cfg.threads,
        timeout=cfg.timeout,
        graceful_timeout=cfg.graceful_timeout,
        max_requests=cfg.max_requests,
        is_tls=bool(cfg.is_ssl),
        binds=cfg.bind if isinstance(cfg.bind, list) else [cfg.bind],
        forwarded_allow_ips=[part.strip() for part in trusted],
        proxy_protocol=proxy_protocol if isinstance(proxy_protocol, str) else "v1" if proxy_protocol else "off",
        http_protocols=getattr(cfg, "http_protocols", ["h1"]),
        cleartext_http2=getattr(cfg, "http2_cleartext", "off"),
        app=app or "",
        as_module=as_module,
        shadowed=frozenset(names),
        url=url,
    )
