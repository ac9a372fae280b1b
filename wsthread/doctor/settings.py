"""What is wrong with a configuration of gunicorn: its settings in, findings out.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .findings import Finding, Hop, fault, note, warning

#: The worker classes under which each request has a thread and a socket.
_FIT = {"gthread", "sync", "gunicorn.workers.gthread.ThreadWorker", "gunicorn.workers.sync.SyncWorker"}
_FEW_THREADS = 8
_FEW_REQUESTS = 1000
_LOCAL = ("127.", "::1", "localhost")


class Settings(NamedTuple):
    """Those settings of gunicorn that WebSockets depend on. Where nothing is said, names and units are gunicorn's.

    Attributes:
        version: gunicorn's.
        is_tls: whether it does TLS itself.
        binds: where it listens, such as ``127.0.0.1:8000`` or ``unix:/run/app.sock``.
        proxy_protocol: ``off``, ``v1``, ``v2`` or ``auto``.
        http_protocols: such as ``["h1", "h2"]``.
        cleartext_http2: ``off``, ``prior-knowledge``, ``upgrade`` or ``both``.
        app: the application, such as ``app:app``; empty when it is not known.
        as_module: whether it is started with ``python -m gunicorn``.
        shadowed: the names of the modules within the package of gunicorn.
        url: the WebSocket that this is about; None when it is not known.
    """

    version: str = ""
    worker_class: str = "sync"
    workers: int = 1
    threads: int = 1
    timeout: float = 30
    graceful_timeout: float = 30
    max_requests: int = 0
    is_tls: bool = False
    binds: Sequence[str] = ("127.0.0.1:8000",)
    forwarded_allow_ips: Sequence[str] = ("127.0.0.1", "::1")
    proxy_protocol: str = "off"
    http_protocols: Sequence[str] = ("h1",)
    cleartext_http2: str = "off"
    app: str = ""
    as_module: bool = False
    shadowed: frozenset[str] = frozenset()
    url: str | None = None

    @property
    def is_public(self) -> bool:
        """Whether it listens on more than this host."""
        return any(not bind.startswith(("unix:", "fd://")) and not is_local(bind) for bind in self.binds)


def is_local(bind: str) -> bool:
    """Tell whether an address is one of this host only."""
    return bind.removeprefix("[").startswith(_LOCAL)


def judge_settings(settings: Settings) -> list[Finding]:
    """Return what is wrong with a configuration of gunicorn."""
    return [
        *_judge_worker(settings), *_judge_stopping(settings), *_judge_protocols(settings), *_judge_proxy(settings)]


def _judge_worker(settings: Settings) -> Iterator[Finding]:
    if settings.worker_class not in _FIT:
        yield fault(
            "worker-class", Hop.SERVER, f"worker_class is {settings.worker_class}: requests have no thread, or no "
            "socket, of their own there, and handshakes are refused with 501 or 500.", "worker_class = \"gthread\"")
    elif settings.is_public and settings.threads < _FEW_THREADS:
        yield warning(
            "few-threads", Hop.SERVER,
            f"gunicorn listens on {', '.join(settings.binds)} and has {settings.threads} HTTP threads per worker: as "
            "many slow clients, which do not finish their requests, block all others and new WebSockets too.",
            "threads = 16, or listen on 127.0.0.1 or a Unix socket behind a proxy that reads requests first (nginx)")
    if settings.workers > 1:
        yield note(
            "workers", Hop.SERVER, f"There are {settings.workers} workers, and each client is connected to one.",
            "Run doctor URL --broadcast MESSAGE to see whether broadcasts reach the clients of all workers.")
    module = settings.app.partition(":")[0].partition(".")[0]
    if settings.as_module and module in settings.shadowed:
        yield fault(
            "module-name", Hop.SERVER, f"With python -m gunicorn, a new master after SIGUSR2 takes the module {module} "
            "for the one of this name within gunicorn and fails.", "Start it with the script: gunicorn …")


def _judge_stopping(settings: Settings) -> Iterator[Finding]:
    if settings.graceful_timeout > settings.timeout > 0:
        yield warning(
            "graceful-timeout", Hop.SERVER,
            f"graceful_timeout ({settings.graceful_timeout:g}) is more than timeout ({settings.timeout:g}): a worker "
            "that ends at max_requests is killed while it still stops, and its clients see 1006.",
            f"graceful_timeout = {settings.timeout:g}, or less")
    if 0 < settings.max_requests < _FEW_REQUESTS:
        yield warning(
            "max-requests", Hop.SERVER,
            f"max_requests is {settings.max_requests}: after so few requests a worker ends and closes all of its "
            "WebSockets with 1001.", f"max_requests = 0, or {_FEW_REQUESTS * 10} with max_requests_jitter")


def _judge_protocols(settings: Settings) -> Iterator[Finding]:
    if settings.is_tls:
        yield warning(
            "tls-in-server", Hop.SERVER, "gunicorn does TLS itself: a client that stops within the TLS handshake holds "
            "one of its threads.", "Let a proxy do TLS (nginx: listen 443 ssl;), without certfile and keyfile here.")
    if settings.cleartext_http2 == "prior-knowledge":
        yield fault(
            "http-2-only", Hop.SERVER, "http2_cleartext is prior-knowledge: requests of HTTP/1.1, as a WebSocket's, "
            "are refused with 400.", "http2_cleartext = \"off\"")
    if "h2" in settings.http_protocols and "h1" not in settings.http_protocols:
        yield fault(
            "http-2-only", Hop.SERVER, "http_protocols has no h1, and a WebSocket is opened with HTTP/1.1.",
            "http_protocols = \"h1\", or \"h2,h1\"")
    elif "h2" in settings.http_protocols:
        yield note(
            "http-2", Hop.SERVER, "http_protocols has h2; WebSockets still come by HTTP/1.1.",
            "A proxy in front has to speak HTTP/1.1 to gunicorn where it passes WebSockets on.")


def _judge_proxy(settings: Settings) -> Iterator[Finding]:
    if settings.proxy_protocol != "off":
        yield note(
            "proxy-protocol-on", Hop.SERVER,
            f"proxy_protocol is {settings.proxy_protocol}: the proxy has to send that header and nobody else may "
            "connect.", "HAProxy: server … send-proxy; and close the port to clients.")
    secure = settings.url is not None and settings.url.startswith(("wss:", "https:"))
    if secure and not settings.is_tls and settings.is_public and all(map(is_local, settings.forwarded_allow_ips)):
        yield warning(
            "forwarded-allow-ips", Hop.SERVER,
            "A proxy does TLS and gunicorn listens for other hosts, but forwarded_allow_ips holds only this one: "
            "X-Forwarded-Proto of a proxy elsewhere is ignored, and conn.request.scheme is http.",
            "forwarded_allow_ips = the address of the proxy, or \"*\" if nobody else can connect")
