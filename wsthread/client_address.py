"""Whose connection it is, for the limit of connections per address.

The WSGI server tells the address of whoever opened the TCP connection. That is not always a client: behind a proxy it
is the proxy's, unless Werkzeug's ProxyFix has put the client's in its place, and a Unix socket has none. Counting all
clients as one would lock them out, so such an address counts as unknown, and who is unknown is not counted.

A header alone does not make a client unknown, or sending one would be a way around the limit. Only a peer on this host,
over loopback, is taken for a proxy.

IPv6 gives each household, and each rented server, a network of its own, usually a /64; so a network counts as one.

Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

_Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

_FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP")
_WITH_PORT = re.compile(r"\[(.*)\](?::\d+)?|(\d+\.\d+\.\d+\.\d+):\d+", re.ASCII)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def client_of(environ: Mapping[str, Any], ipv6_prefix: int) -> str | None:
    """Return a name for the client of a request, the same for all its connections; None when it is unknown.

    Args:
        environ: the WSGI environ.
        ipv6_prefix: how many bits of an IPv6 address make a client.
    """
    address = _parse(environ.get("REMOTE_ADDR", ""))
    if address is None or (address.is_loopback and _is_forwarded(environ, address)):
        return None
    if isinstance(address, ipaddress.IPv4Address) or address.is_link_local:  # All neighbours share one /64.
        return str(address)
    return str(ipaddress.IPv6Network((int(address), ipv6_prefix), strict=False))


def may_be_proxy(environ: Mapping[str, Any]) -> bool:
    """Tell whether a request seems to come from a proxy in a private network whose header nobody reads."""
    address = _parse(environ.get("REMOTE_ADDR", ""))
    return address is not None and address.is_private and _is_forwarded(environ, address)


def _parse(text: str) -> _Address | None:
    """Return the address in a text; None when there is none, as in ``unix:`` or the ``unknown`` of a proxy."""
    with_port = _WITH_PORT.fullmatch(text)  # Some proxies put it into X-Forwarded-For, and ProxyFix takes it over.
    if with_port is not None:
        text = with_port[1] or with_port[2]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:  # A socket for both kinds.
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_forwarded(environ: Mapping[str, Any], address: _Address) -> bool:
    """Tell whether a proxy names another client than that address."""
    named = [environ[name] for name in _FORWARDED if environ.get(name)]
    return bool(named) and address not in [_parse(one.strip(" \t")) for one in ",".join(named).split(",")]
