"""Certificates for tests of TLS: an authority, a server's for 127.0.0.1 and a client's. They are made once per run."""

from __future__ import annotations

import functools
import ssl
import tempfile
from pathlib import Path
from typing import NamedTuple

import trustme

_DIRECTORY = tempfile.TemporaryDirectory(prefix="wsthread-certificates-")


class Certificates(NamedTuple):
    """Paths of files in PEM: the certificate of the authority; certificates and keys of the server and of a client."""

    authority: str
    server: str
    server_key: str
    client: str
    client_key: str


@functools.cache
def certificates() -> Certificates:
    """Make them, the first time."""
    authority = trustme.CA()
    paths = Certificates(*(str(Path(_DIRECTORY.name, f"{name}.pem")) for name in Certificates._fields))
    authority.cert_pem.write_to_path(paths.authority)
    for one, certificate, key in (
            (authority.issue_cert("127.0.0.1", "localhost"), paths.server, paths.server_key),
            (authority.issue_cert("device@example.com", common_name="device"), paths.client, paths.client_key)):
        one.cert_chain_pems[0].write_to_path(certificate)
        one.private_key_pem.write_to_path(key)
    return paths


def client_context(version: ssl.TLSVersion | None = None, certificate: bool = False) -> ssl.SSLContext:
    """Return a context for a client, that speaks this version only, or any for None."""
    paths = certificates()
    context = ssl.create_default_context(cafile=paths.authority)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if certificate:
        context.load_cert_chain(paths.client, paths.client_key)
    return context


def server_context() -> ssl.SSLContext:
    """Return a context for a server."""
    paths = certificates()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths.server, paths.server_key)
    return context
