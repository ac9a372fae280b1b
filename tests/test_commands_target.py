"""What all commands share: headers, certificates, and what failures are called."""

from __future__ import annotations

import argparse
import ssl
from pathlib import Path

import pytest

from wsthread.commands import target
from wsthread.exceptions import ConnectionClosed, HandshakeRefused, ProtocolError

REFUSED = HandshakeRefused(302, "Found", [("Location", "/login"), ("A", "b")], b"<p>go\n")


@pytest.mark.parametrize(("error", "text", "status"), [
    (REFUSED, "302 Found\nLocation: /login\n<p>go", target.REFUSED),
    (HandshakeRefused(403), "403", target.REFUSED),
    (ProtocolError("the answer is not HTTP"), "the answer is not HTTP", target.NOT_REACHED),
    (ConnectionClosed(1006), "the server closed the connection without an answer", target.NOT_REACHED),
    (TimeoutError(), "nobody answered in time", target.NOT_REACHED),
    (TimeoutError("too late"), "too late", target.NOT_REACHED),
    (ConnectionRefusedError(111, "Connection refused"), "Connection refused", target.NOT_REACHED),
    (OSError("a has no address"), "a has no address", target.NOT_REACHED),
])
def test_failures(error: Exception, text: str, status: int) -> None:
    assert target.describe(error) == text
    assert target.status_of(error) == status


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    target.add_arguments(parser)
    return parser.parse_args(arguments)


def test_options() -> None:
    found = target.options(parse(
        "-H", "A: b", "--header", "C:d", "--subprotocol", "x", "--subprotocol", "y", "--origin", "https://a",
        "--timeout", "3", "--unix", "/run/a"))
    context = found.pop("ssl_context")
    assert found == {
        "headers": [("A", "b"), ("C", "d")], "subprotocols": ["x", "y"], "origin": "https://a", "timeout": 3.0,
        "unix_path": "/run/a"}
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname


def test_insecure() -> None:
    context = target.tls_context(parse("--insecure"))
    assert context.verify_mode is ssl.CERT_NONE and not context.check_hostname


@pytest.mark.parametrize("option", ["--ca", "--certificate"])
def test_no_certificate(option: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("nowhere", "empty"):
        with pytest.raises(ValueError, match=name):
            target.tls_context(parse(option, str(tmp_path / name)))
