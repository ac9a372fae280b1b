"""Where a command connects to and as whom: the arguments that the commands share, and what failures are called."""

from __future__ import annotations

import argparse
import functools
import os
import ssl
from collections.abc import Callable
from typing import Any

from ..client import ClientConnection, connect
from ..exceptions import ConnectionClosed, HandshakeRefused, ProtocolError

#: Exit statuses. argparse has 2, for arguments that make no sense.
DONE, REFUSED, NOT_REACHED, CLOSED, TOO_LATE, INTERRUPTED = 0, 1, 3, 4, 5, 130
#: What opening a connection raises when the server, or the way to it, is the reason.
FAILURES = (HandshakeRefused, ProtocolError, ConnectionClosed, OSError)


def seconds(text: str) -> float:
    """Read an argument that is a number of seconds."""
    found = float(text)
    if not 0 < found < 1e9:
        raise argparse.ArgumentTypeError(f"{text} must be more than 0 seconds")
    return found


def header(text: str) -> tuple[str, str]:
    """Read an argument of the form ``Name: value``."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} must have the form 'Name: value'")
    return name.strip(), value.strip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those that tell how to connect; the URL is the command's own."""
    parser.add_argument(
        "-H", "--header", metavar="'NAME: VALUE'", type=header, action="append", default=[],
        help="one more header of the request; any number of times")
    parser.add_argument(
        "--subprotocol", metavar="NAME", action="append", default=[], help="one to offer; any number of times")
    parser.add_argument("--origin", metavar="URL", help="the page that a browser would come from")
    parser.add_argument("--unix", metavar="PATH", help="connect to this Unix socket in place of the URL's host")
    parser.add_argument("--insecure", action="store_true", help="accept any certificate")
    parser.add_argument("--ca", metavar="FILE", help="trust the authorities, or the certificate, in this file")
    parser.add_argument(
        "--certificate", metavar="FILE", help="show the client certificate in this file, which has its key too")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=seconds, default=10.0, help="how long to wait (default: 10)")


def opener(arguments: argparse.Namespace) -> Callable[[], ClientConnection]:
    """Return a function that opens a connection as the arguments say: ``url`` and those of :func:`add_arguments`.

    Raises:
        ValueError: a file with certificates cannot be read.
    """
    return functools.partial(connect, arguments.url, **options(arguments))


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments as those of :func:`wsthread.client.connect`.

    Raises:
        ValueError: a file with certificates cannot be read.
    """
    return {
        "headers": arguments.header, "subprotocols": arguments.subprotocol, "origin": arguments.origin,
        "timeout": arguments.timeout, "ssl_context": tls_context(arguments), "unix_path": arguments.unix}


def tls_context(arguments: argparse.Namespace) -> ssl.SSLContext:
    """Return what TLS is to be like.

    Raises:
        ValueError: a file with certificates cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=arguments.ca)
        if arguments.certificate:
            context.load_cert_chain(arguments.certificate)
    except OSError as error:
        raise ValueError(f"{arguments.ca or arguments.certificate}: {error}") from error
    if arguments.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def describe(error: Exception) -> str:
    """Tell why there is no connection; a refusal with its whole body."""
    if isinstance(error, HandshakeRefused):
        locations = [f"Location: {value}" for name, value in error.headers if name.lower() == "location"]
        body = error.body.decode(errors="replace").strip()
        return "\n".join([f"{error.status} {error.reason}".rstrip(), *locations, *filter(None, [body])])
    if isinstance(error, ProtocolError):
        return error.reason
    if isinstance(error, ConnectionClosed):
        return "the server closed the connection without an answer"
    if isinstance(error, TimeoutError):
        return str(error) or "nobody answered in time"
    if isinstance(error, OSError) and error.errno:
        return error.strerror or os.strerror(error.errno)
    return str(error)


def status_of(error: Exception) -> int:
    """Return the exit status for an error of :data:`FAILURES`."""
    return REFUSED if isinstance(error, HandshakeRefused) else NOT_REACHED
