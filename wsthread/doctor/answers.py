"""What a server's answer tells that is no 101: who wrote it, and what is wrong there.

Refusals of this library have a header that says so, and one sentence for the operator; proxies and other servers have
pages of their own, by which they are known here.

Pure.
"""

from __future__ import annotations

import html
import re
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from ..exceptions import REFUSED_HEADER
from .findings import Finding, Hop, fault, warning

#: Who writes such a page: the first one that is found.
_PAGES = [
    (re.compile(r"<center>(nginx|openresty)"), "nginx"),
    (re.compile(r"^<html><body><h1>\d{3} [^<]*</h1>\s[^<]+\s</body></html>\s*$"), "HAProxy"),
    (re.compile(r"<title>.*</title>\s*</head>\s*<body>\s*<h1><p>.*</p></h1>", re.DOTALL), "gunicorn"),
    (re.compile(r"<address>Apache"), "Apache"),
]
_PROXIES = {"nginx", "HAProxy", "Apache", "Caddy", "cloudflare", "awselb", "Traefik", "Varnish", "envoy", "openresty"}


class Answer(NamedTuple):
    """The answer to an opening handshake.

    Attributes:
        status: such as 403.
        headers: names and values.
        body: its text, or the beginning of it.
        url: what was asked for.
    """

    status: int
    headers: list[tuple[str, str]]
    body: str
    url: str

    def header(self, name: str) -> str:
        """Return the value of a header, "" without one."""
        return next((value for found, value in self.headers if found.lower() == name.lower()), "")

    @property
    def text(self) -> str:
        """The body without its tags."""
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.body)).split())

    @property
    def quoted(self) -> str:
        """The status and the first words of the body, to quote."""
        return f"{self.status}: {self.text[:300]}" if self.text else f"{self.status} without a text"


def is_ours(answer: Answer) -> bool:
    """Tell whether this library has written an answer."""
    return bool(answer.header(REFUSED_HEADER))


def author(answer: Answer) -> str:
    """Return who seems to have written an answer that is not ours: ``nginx``, ``gunicorn``; "" for the application."""
    for page, name in _PAGES:
        if page.search(answer.body):
            return name
    product = answer.header("Server").partition("/")[0]
    if not answer.body.strip() and product in _PROXIES - {"nginx", "openresty"}:
        return product  # nginx signs what it passes on as well.
    if answer.body.strip() in ("Bad Gateway", "Gateway Timeout", "Service Unavailable", "404 page not found"):
        return "Traefik"  # As Go's library words it.
    return ""


def judge_answer(answer: Answer) -> Finding:
    """Return what is wrong when a handshake is answered like this."""
    if is_ours(answer):
        return _judge_ours(answer)
    name = author(answer)
    if name == "gunicorn" and answer.status == 400:
        return _judge_bad_request(answer)
    if "plain HTTP request was sent to HTTPS port" in answer.body:
        return tls_expected()
    if "No required SSL certificate was sent" in answer.body:
        return fault(
            "client-certificate", Hop.PROXY, f"{name} wants a certificate of the client ({answer.quoted}).",
            "--certificate FILE, or nginx: ssl_verify_client off;")
    if answer.status in (301, 302, 303, 307, 308):
        return _judge_redirect(answer)
    return _judge_status(answer, name)


def tls_expected() -> Finding:
    """Return what is wrong when ws:// meets a port of TLS."""
    return fault(
        "tls-expected", Hop.CLIENT, "The port speaks TLS, and the URL begins with ws://.", "Use wss:// in its place.")


#: What our header and our sentence say, and what is wrong then: a cause, a part of the sentence, and then the name,
#: whose doing it is, and the remedy. The first that fits counts.
_CAUSES: list[tuple[str, str, str, Hop, str]] = [
    ("upgrade", "", "upgrade-lost", Hop.PROXY,
     "nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;"),
    ("connection", "", "connection-lost", Hop.PROXY, 'nginx: proxy_set_header Connection "upgrade";'),
    ("http-version", "HTTP/1.0", "http-1.0", Hop.PROXY, "nginx: proxy_http_version 1.1;"),
    ("http-version", "", "http-2-upstream", Hop.PROXY, "Let the proxy speak HTTP/1.1 to the server."),
    ("origin", "Host lacks the port", "port-dropped", Hop.PROXY,
     "nginx: proxy_set_header Host $host:$server_port; in place of $host."),
    ("origin", "", "host-changed", Hop.PROXY,
     "nginx: proxy_set_header Host $host; (on another port than 80 and 443: $host:$server_port); or ProxyFix(x_host=1) "
     "in the application; or the option origins, if this page is another site."),
    ("subprotocol", "", "subprotocol", Hop.CLIENT, "Offer one of these: --subprotocol NAME."),
    ("key", "", "handshake-changed", Hop.PROXY, "Let the proxy pass all Sec-WebSocket-* headers on."),
    ("version", "", "handshake-changed", Hop.PROXY, "Let the proxy pass all Sec-WebSocket-* headers on."),
    ("server", "", "server-cannot", Hop.SERVER, "gunicorn with worker_class = \"gthread\"; the README lists others."),
    ("limit", "max_connections_per_address", "per-address", Hop.APPLICATION,
     "If a proxy stands in front: ProxyFix(x_for=1). Else raise max_connections_per_address."),
    ("limit", "stopping", "stopping", Hop.SERVER, "It is being stopped; ask again when it has started."),
    ("limit", "no thread can be started", "threads-limit", Hop.MACHINE,
     "Raise the limit of threads, or of memory: systemd TasksMax, docker run --pids-limit."),
    ("limit", "max_connections", "connection-limit", Hop.APPLICATION, "Raise max_connections, or start more workers."),
    ("descriptors", "", "open-files", Hop.MACHINE, "Raise the limit for open files: systemd LimitNOFILE=65536."),
]


def _judge_ours(answer: Answer) -> Finding:
    cause = answer.header(REFUSED_HEADER)
    for found, part, name, hop, remedy in _CAUSES:
        if found == cause and part in answer.text:
            return fault(name, hop, answer.text, remedy)
    return fault("refused", Hop.APPLICATION, f"{answer.status}: {answer.text}", "The sentence above tells.")


def _judge_bad_request(answer: Answer) -> Finding:
    # Ours is valid, so something stands in front of it.
    if re.search(r"Invalid (HTTP )?(request line|version)", answer.body, re.IGNORECASE):
        return fault(
            "proxy-protocol", Hop.SERVER, "gunicorn does not understand what comes before the request, the PROXY "
            f"header of a proxy ({answer.quoted}).",
            "gunicorn: proxy_protocol = \"auto\" (before 24.1: True, and version 1 only); or the proxy: server … "
            "without send-proxy")
    if "HTTP/2 connection preface" in answer.body:
        return fault(
            "http-2-only", Hop.SERVER, f"gunicorn takes HTTP/2 only here ({answer.quoted}).",
            "http2_cleartext = \"off\"")
    return fault(
        "bad-request", Hop.SERVER, f"gunicorn refuses the request before any application sees it ({answer.quoted}).",
        "Look into gunicorn's log, and at what the proxy in front adds to requests.")


def _judge_redirect(answer: Answer) -> Finding:
    location = answer.header("Location")
    target = urlsplit(urljoin(re.sub("^ws", "http", answer.url), location))
    asked = urlsplit(re.sub("^ws", "http", answer.url))
    if target.scheme == "https" != asked.scheme and target.path == asked.path:
        return fault(
            "redirect-to-https", Hop.CLIENT, f"{answer.status} to {location}, and a WebSocket follows no redirects.",
            f"Use wss://{target.netloc}{target.path}.")
    if target.path.rstrip("/") == asked.path.rstrip("/"):
        return fault(
            "redirect-slash", Hop.CLIENT, f"{answer.status} to {location}, and a WebSocket follows no redirects.",
            f"Use the path {target.path}.")
    return fault(
        "redirect", Hop.APPLICATION, f"{answer.status} to {location}, and a WebSocket follows no redirects.",
        "If that is a page to log in: pass a cookie with --header, and answer 401 there instead.")


def _judge_status(answer: Answer, name: str) -> Finding:
    """Judge an answer that neither we nor the parser of a server have written."""
    said, by_proxy = f"{name or 'The application'} answers {answer.quoted}", name in _PROXIES
    hop = Hop.PROXY if by_proxy else Hop.APPLICATION
    if answer.status == 401:
        return fault(
            "proxy-auth" if by_proxy else "login-required", hop, said,
            "Put user and password into the URL (wss://user:password@host/), or send --header 'Authorization: …'.")
    if answer.status == 403 and (by_proxy or answer.body.strip()):
        return fault(
            "proxy-forbids" if by_proxy else "forbidden", hop, said,
            "nginx: deny, allow" if by_proxy else "The application's own rule; it may want a cookie (--header).")
    if answer.status == 403:
        return fault(
            "asgi-wrapper", Hop.SERVER, "403 without a text: so answers an ASGI server (hypercorn, a2wsgi, uvicorn) "
            "that is to serve WSGI; it refuses WebSockets before the application.",
            "Serve the application with gunicorn and worker_class = \"gthread\".")
    if answer.status == 404:
        return fault(
            "proxy-path" if by_proxy else "not-found", hop, said,
            "nginx: is there a location for this path?" if by_proxy else "Is the path right, and its last slash?")
    if answer.status == 502:
        return fault(
            "upstream-down", Hop.PROXY, f"{said}: it reaches no server.",
            "Is gunicorn running, and where the proxy looks for it (nginx: proxy_pass; HAProxy: server), without TLS?")
    if answer.status == 504:
        return fault(
            "upstream-slow", Hop.SERVER, f"{said}: the server did not answer in time.",
            "Are all HTTP threads of gunicorn busy (threads)?")
    if answer.status in (429, 503):
        return fault(
            "no-upstream" if name == "HAProxy" else "proxy-limit" if by_proxy else "unavailable", hop, said,
            "HAProxy: is the server up, and are WebSockets not more than its maxconn?" if name == "HAProxy"
            else "nginx: limit_conn, limit_req" if by_proxy else "Look into the application's log.")
    if answer.status == 500:
        return fault(
            "application-fails", hop, said, "Look into the server's log. Under an ASGI worker (uvicorn, -k asgi) every "
            "request of a WSGI application fails: worker_class = \"gthread\".")
    if answer.status == 200:
        return fault(
            "no-websocket-here", hop, "The answer is a page, so this address takes no WebSockets, or a proxy took the "
            "Upgrade out of the request.", "Is the path that of the WebSocket?")
    return warning("unexpected", hop, said, "This status has no meaning in an opening handshake.")
