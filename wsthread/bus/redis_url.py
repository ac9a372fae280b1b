"""Where a Redis is, from a URL as redis-py knows them, and as others write them for Sentinel and Cluster.

Pure. Whatever is told of a URL, in logs and errors, has no password in it.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

_SENTINEL_PORT = 26379
_PORT = 6379
_SCHEMES = {
    "redis": "redis", "rediss": "rediss", "unix": "unix", "valkey": "redis", "valkeys": "rediss",
    "redis+sentinel": "redis", "rediss+sentinel": "rediss", "redis+cluster": "redis", "rediss+cluster": "rediss",
}


class Target(NamedTuple):
    """A Redis.

    Attributes:
        url: for redis-py; it has the credentials and the options, and of several hosts the first.
        nodes: hosts and ports of the sentinels, or of nodes of a cluster; empty when there is one server.
        service: what the sentinels call it; None without sentinels.
        sentinel_credentials: user name and password for the sentinels, if they want any.
        label: what to call it where people read it.
    """

    url: str
    nodes: list[tuple[str, int]]
    service: str | None
    sentinel_credentials: tuple[str | None, str | None]
    label: str


def parse(url: str) -> Target:
    """Read a URL.

    Raises:
        ValueError: it is none that is known.
    """
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            f"the URL of a Redis begins with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://, "
            f"not with {parts.scheme or 'nothing'}://")
    base = _SCHEMES[parts.scheme]
    if parts.scheme == "unix":
        return Target(url, [], None, (None, None), f"unix://{parts.path}")
    credentials, at, hosts = parts.netloc.rpartition("@")
    nodes = [_host_and_port(one, _SENTINEL_PORT if kind == "sentinel" else _PORT) for one in hosts.split(",")]
    path = parts.path
    service = None
    query = dict(parse_qsl(parts.query))
    if kind == "sentinel":
        service, _, database = parts.path.strip("/").partition("/")
        service = unquote(service)
        if not service:
            raise ValueError(
                "a URL for Sentinel ends with the service's name, as in redis+sentinel://host:26379/mymaster/0")
        path = f"/{database}"
    elif len(nodes) > 1 and not kind:
        raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
    sentinel_credentials = (query.pop("sentinel_username", None), query.pop("sentinel_password", None))
    host, port = nodes[0]
    netloc = f"{credentials}{at}{f'[{host}]' if ':' in host else host}:{port}"
    return Target(
        f"{base}://{netloc}{path}" + (f"?{urlencode(query)}" if query else ""),
        nodes if kind else [], service, sentinel_credentials, f"{parts.scheme}://{hosts}{parts.path}".rstrip("/"))


def key_of(name: str) -> str:
    """Return the key of the stream of the managers of a name. All keys of one name are in one slot of a cluster."""
    return f"wsthread:{{{quote(name, safe=' ')}}}"


def moved_to(error: str) -> tuple[str, int] | None:
    """Return the node that an error of a cluster names, its host empty for the same one; None if it names none.

    Until version 5 redis-py passes the error on as it comes, later ones cut off its first word.
    """
    found = re.fullmatch(r"(?:MOVED )?\d+ (\S*):(\d{1,5})", error)
    return None if found is None else (found[1], int(found[2]))


def _host_and_port(text: str, port: int) -> tuple[str, int]:
    found = re.fullmatch(r"(?:\[([^]]+)]|([^:\[\]]*))(?::(\d{1,5}))?", text)
    if found is None:
        raise ValueError("the URL of a Redis has hosts and ports as in host:6379 or [::1]:6379")
    return found[1] or found[2] or "localhost", int(found[3] or port)
