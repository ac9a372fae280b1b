"""Which pages may connect: the Origin header of a handshake, and the option ``origins`` (RFC 6455 10.2, RFC 6454).

An origin is a scheme, a host and a port, without the port where it is the scheme's own, and without a path. A browser
writes it in one form only: lower case, ``xn--`` names, short IPv6. Pages without an origin of their own send ``null``,
and what does not come from a server ``file://`` or a scheme of its application. Clients that are no browsers send
anything or nothing, so an origin tells which page it is and never who.

:func:`check_origins` looks at the option once and refuses what no Origin header can ever be, because a string that
never matches is a mistake that only shows when the page is live. :func:`is_allowed` looks at each handshake.

Pure: values in, values out.
"""

from __future__ import annotations

import functools
import inspect
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

#: What ``origins`` may be: None for same-origin, strings and patterns for a list, a callable for anything else.
Origins: TypeAlias = "None | str | re.Pattern[str] | Iterable[str | re.Pattern[str]] | Callable[[str], bool]"

ANY = "*"
NULL = "null"
SAME_ORIGIN = "same-origin"
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

_FLAGS = re.ASCII | re.IGNORECASE
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[\w.-]*)(?::([0-9]{0,5}))?/?", _FLAGS)
_HOST = re.compile(r"()(\[[0-9a-f:.]+\]|[\w.-]*)(?::([0-9]{0,5}))?", _FLAGS)
_NAMES = r"(?:[\w-]+\.)+"  # What "*." stands for.
_PORTS = r"(?::[0-9]{1,5})?"  # What ":*" stands for.


class _Parts(NamedTuple):
    """What an origin or a Host consists of, in lower case; a port of None is the scheme's own."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def of(cls, form: re.Pattern[str], text: str) -> _Parts | None:
        """Return those of a text in a form; None when it is not in it."""
        match = form.fullmatch(text)
        if match is None or int(match[3] or 0) > 65535:
            return None
        return cls(match[1].lower(), match[2].lower(), int(match[3]) if match[3] else None)


# A handshake


def is_allowed(origin: str, host: str, origins: Origins) -> bool:
    """Tell whether a page may connect.

    Args:
        origin: the Origin header.
        host: the host and port that the request was sent to, as in the Host header.
        origins: the option.
    """
    if origins is None:
        return is_same_origin(origin, host)
    if callable(origins):
        answer = origins(origin)
        if inspect.iscoroutine(answer):  # It would be true, whatever comes of it.
            answer.close()
            raise TypeError(f"origins returned {answer!r}; it must be a plain function that returns a bool")
        return bool(answer)
    if isinstance(origins, (str, re.Pattern)):
        return _matches(origin, host, origins)
    return any(_matches(origin, host, one) for one in origins)


def _matches(origin: str, host: str, allowed: str | re.Pattern[str]) -> bool:
    if isinstance(allowed, re.Pattern):
        return allowed.fullmatch(origin) is not None
    if allowed == ANY:
        return True
    if allowed == SAME_ORIGIN:
        return is_same_origin(origin, host)
    if "*" in allowed:
        return _wildcard(allowed).fullmatch(origin) is not None
    return _plain(allowed) == _plain(origin)


def _plain(origin: str) -> str:
    """Return an origin in lower case without the slash that some clients, and some people, put at its end."""
    return origin.lower() if origin.endswith("://") else origin.lower().removesuffix("/")


@functools.lru_cache(maxsize=256)
def _wildcard(allowed: str) -> re.Pattern[str]:
    """Return the pattern for a string with ``*``: names in front of a domain, the port, or both."""
    scheme, _, authority = _plain(allowed).partition("://")
    port = _PORTS if authority.endswith(":*") else ""
    authority = authority.removesuffix(":*")
    names = _NAMES if authority.startswith("*.") else ""
    rest = re.escape(authority.removeprefix("*."))
    return re.compile(f"{re.escape(scheme)}://{names}{rest}{port}/?", _FLAGS)


@functools.lru_cache(maxsize=64)  # All pages of a site have one origin.
def is_same_origin(origin: str, host: str) -> bool:
    """Tell whether a page came from the host and port that its request was sent to.

    The scheme is not compared, for behind a TLS proxy an https page is served by a server that knows http only. Clients
    that are no browsers may name the address of the WebSocket itself, with ``ws`` or ``wss``.
    """
    page, ours = _Parts.of(_ORIGIN, origin), _Parts.of(_HOST, host)
    if page is None or ours is None or not page.host or page.host != ours.host:
        return False
    default_port = DEFAULT_PORTS.get(page.scheme)
    return default_port is not None and (page.port or default_port) == (ours.port or default_port)


def advice(origin: str, host: str, origins: Origins, forwarded_host: str | None = None) -> str:
    """Tell the operator what to change if a page that was refused should have been allowed.

    Args:
        origin: the Origin header.
        host: the host and port that the request was sent to.
        origins: the option.
        forwarded_host: X-Forwarded-Host, where a proxy may have put the host that the page was sent to.
    """
    if not _has_same_origin(origins):
        return ""
    page, ours = _Parts.of(_ORIGIN, origin), _Parts.of(_HOST, host)
    if forwarded_host and is_same_origin(origin, forwarded_host.split(",")[0].strip(" \t")):
        return (
            "A proxy put the page's host into X-Forwarded-Host: apply ProxyFix(x_host=1), or let the proxy pass Host "
            "on (nginx: proxy_set_header Host $host; Apache: ProxyPreserveHost On).")
    if page is None or ours is None or page.scheme not in DEFAULT_PORTS:
        return ""
    if page.host == ours.host and ours.port is None:
        return (
            "Host lacks the port. If a proxy drops it, let it pass the port on (nginx: proxy_set_header Host "
            "$host:$server_port; instead of $host).")
    if _is_local(page.host) and _is_local(ours.host):
        return (
            "If a development server passes this on (Vite, webpack, Create React App), set its changeOrigin to false, "
            f'or say origins="{page.scheme}://{page.host[:64]}:*".')
    return "If a proxy changed Host, let it pass it on (nginx: proxy_set_header Host $host;) or apply ProxyFix."


def _has_same_origin(origins: Origins) -> bool:
    if origins is None or isinstance(origins, str):
        return origins in (None, SAME_ORIGIN)
    return not callable(origins) and not isinstance(origins, re.Pattern) and SAME_ORIGIN in origins


def _is_local(host: str) -> bool:
    return re.fullmatch(r"\[::1\]|(.+\.)?localhost|127(\.[0-9]+){3}", host) is not None


# The option


def check_origins(origins: Origins) -> Origins:
    """Return the option, an iterable as a tuple; refuse what could never match.

    Raises:
        TypeError: it is none of what it may be.
        ValueError: a string that no Origin header can be; the message has the right form.
    """
    if callable(origins):
        if inspect.iscoroutinefunction(origins):
            raise TypeError(f"origins is {origins!r}, which is async; it must be a plain function")
        return origins
    if origins is None:
        return None
    if isinstance(origins, (str, re.Pattern)):
        _check(origins)
        return origins
    several = tuple(origins) if isinstance(origins, Iterable) else (None,)
    for one in several:
        if not isinstance(one, (str, re.Pattern)):
            raise TypeError(f"origins is {origins!r}, it must be None, a callable, or strings and patterns")
        _check(one)
    return several


def _check(allowed: str | re.Pattern[str]) -> None:
    if isinstance(allowed, re.Pattern):
        if not isinstance(allowed.pattern, str):
            raise TypeError(f"origins is or has {allowed!r}, which is for bytes; an origin is a str")
    elif allowed not in (ANY, SAME_ORIGIN) and allowed.lower() != NULL:
        wrong = _find_mistake(allowed)
        if wrong is not None:
            raise ValueError(f"origins has {allowed!r}, which never matches: {wrong}")


def _find_mistake(allowed: str) -> str | None:
    """Return why no Origin header can be this, and what to write; None when there may be one."""
    if not allowed.strip():
        return "it is empty; an empty list allows no page"
    if len(re.split(r"[,\s]+", allowed.strip(", \t\r\n"))) > 1:
        return "it is several origins in one string; write a list of strings"
    if allowed != allowed.strip():
        return _find_mistake(allowed.strip()) or f"it has blanks around it; write {allowed.strip()!r}"
    if allowed.strip("'\"").lower() in ("self", SAME_ORIGIN):
        return f"for pages of the same host write {SAME_ORIGIN!r}"
    opaque = re.match("(about|data|javascript|file):(?!//)", allowed, re.IGNORECASE)
    if opaque is not None:
        return f"browsers send {NULL!r} or 'file://' for such pages"
    scheme, slashes, rest = allowed.partition("://")
    if not slashes:
        example = _corrected("https", allowed.lstrip("/"))
        return "it does not begin with a scheme" + (f"; write {example!r}, or the same with http" if example else "")
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme, _FLAGS):
        return "it begins with no scheme; write a string for each scheme, such as 'https://example.com'"
    right = _corrected(scheme.lower(), rest)
    if right is None:
        return (
            "browsers send no such host or port; write 'https://*.example.com' for all names below a domain, "
            "'http://localhost:*' for all ports, or a compiled pattern")
    if right == _plain(allowed):
        return None
    hint = f"write {right!r}"
    if re.search("[/?#]", rest.removesuffix("/")) and scheme.lower() != "file":
        hint += "; for a client that is no browser and sends all of it, re.compile(re.escape(...))"
    return f"browsers send it in another form; {hint}"


def _corrected(scheme: str, rest: str) -> str | None:
    """Return an origin as a browser sends it; None when there is no way to know.

    Args:
        scheme: in lower case.
        rest: what follows the ``://``.
    """
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0].rpartition("@")[2].lower()
    if scheme == "file":
        return "file://"
    host, port = _split_port(authority)
    if port not in ("", "*") and not (port.isascii() and port.isdigit() and int(port) <= 65535):
        return None
    port = port.lstrip("0") if port != "*" else port
    wildcard = "*." if host.startswith(("*.", ".")) else ""
    name = _host_as_sent(host.removeprefix("*").removeprefix(".") if wildcard else host)
    if name is None or (wildcard and _is_address(name)) or (not name and scheme in DEFAULT_PORTS):
        return None
    is_default = port == str(DEFAULT_PORTS.get(scheme))
    return f"{scheme}://{wildcard}{name}" + (f":{port}" if port and not is_default else "")


def _split_port(authority: str) -> tuple[str, str]:
    if authority.startswith("["):
        host, bracket, port = authority.partition("]")
        return host + bracket, port.removeprefix(":")
    if authority.count(":") > 1:  # IPv6 without its brackets.
        return f"[{authority}]", ""
    host, _, port = authority.partition(":")
    return host, port


def _host_as_sent(host: str) -> str | None:
    """Return a host as browsers write it; None when it is no host."""
    try:
        if host.startswith("["):
            return None if not host.endswith("]") else _ipv6_as_sent(host[1:-1])
        if _is_address(host):
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        return None
    labels = [
        label if label.isascii() else "xn--" + unicodedata.normalize("NFC", label).encode("punycode").decode()
        for label in host.split(".")]
    name = ".".join(labels)
    return name if re.fullmatch(r"[\w.-]*", name, _FLAGS) else None


def _ipv6_as_sent(host: str) -> str | None:
    address = ipaddress.IPv6Address(host)
    if address.scope_id is not None:
        return None
    if address.ipv4_mapped is not None:  # Browsers write no dots, newer versions of ipaddress do.
        number = int(address.ipv4_mapped)
        return f"[::ffff:{number >> 16:x}:{number & 0xffff:x}]"
    return f"[{address}]"


def _is_address(host: str) -> bool:
    """Tell whether a host is an IP address, or is taken for one: then its last part is a number."""
    return host.startswith("[") or re.fullmatch("[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]) is not None
