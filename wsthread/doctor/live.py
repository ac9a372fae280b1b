"""Opens WebSockets and tells what is wrong on the way: name, port, TLS, certificate, proxy, server, application.

It does what a browser would do, so the handshake has the Origin of the URL. Where that fails, more handshakes, with one
thing changed in each, and a plain GET tell why. Nothing is sent but handshakes and Pings, unless the caller asks for
more.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
from collections.abc import Callable

from ..exceptions import ConnectionClosed, HandshakeRefused, ProtocolError
from ..wire.client_handshake import Target, parse_url
from .answers import Answer, judge_answer, tls_expected
from .findings import Finding, Hop, fault
from .opened import judge_open
from .visit import Visit

#: OpenSSL's verify codes (X509_V_ERR_*): name of the finding, remedy.
_CERTIFICATES = {
    10: ("certificate-expired", "Renew the certificate of the proxy, and reload the proxy."),
    62: ("certificate-name", "Use a host that the certificate has, or a certificate that has this host."),
    64: ("certificate-name", "Use the name that the certificate has; it has not this address."),
}
#: Seconds after which an answer was not ready at once.
_QUEUED = 0.8


def judge_live(visit: Visit, say: Callable[[str], object] = lambda text: None) -> list[Finding]:
    """Open WebSockets and return what is wrong; nothing when all is well.

    Args:
        visit: what to look at.
        say: is told what is being done when that takes long.

    Raises:
        ValueError: the URL cannot be one.
    """
    begin = time.monotonic()
    try:
        connection = visit.open(origin=visit.origin)
    except HandshakeRefused as error:
        return [_judge_refusal(visit, error, time.monotonic() - begin)]
    except ProtocolError as error:
        return [_judge_no_http(error)]
    except ConnectionClosed:
        return [_judge_silence(visit)]
    except ssl.SSLError as error:
        return [_judge_tls(visit, error)]
    except TimeoutError as error:
        return [_judge_timeout(visit, error)]
    except OSError as error:
        return [_judge_unreachable(visit, error)]
    try:
        return judge_open(visit, connection, say)
    finally:
        connection.terminate()


# There was no WebSocket


def _judge_refusal(visit: Visit, error: HandshakeRefused, waited: float) -> Finding:
    found = judge_answer(_answer(visit.url, error))
    if found.name == "no-upstream" and waited > _QUEUED:
        return fault(
            "server-maxconn", Hop.PROXY, f"HAProxy lets the handshake wait for {waited:.1f} s and answers 503: the "
            "server has as many connections as it may have, and WebSockets count as long as they are open.",
            "HAProxy: server … maxconn above all WebSockets and requests together, or none")
    if found.name in ("not-found", "no-websocket-here", "application-fails", "unexpected"):
        return _other_slash(visit) or found
    return found


def _answer(url: str, error: HandshakeRefused) -> Answer:
    return Answer(error.status, error.headers, error.body.decode(errors="replace"), url)


def _other_slash(visit: Visit) -> Finding | None:
    """Return what is wrong when the path works with a slash more or less at its end."""
    path, question, query = visit.url.partition("?")
    other = path[:-1] if path.endswith("/") else f"{path}/"
    try:
        visit.open(f"{other}{question}{query}", visit.origin).terminate()
    except (HandshakeRefused, ProtocolError, ConnectionClosed, OSError):
        return None
    return fault(
        "wrong-slash", Hop.CLIENT, f"Nothing is at {path}, and a WebSocket is at {other}.", f"Use {other}.")


def _judge_no_http(error: ProtocolError) -> Finding:
    if "TLS" in error.reason:
        return tls_expected()
    if "101" in error.reason:
        return fault(
            "broken-101", Hop.PROXY, f"The handshake is answered, but {error.reason}.",
            "Let the proxy pass the 101 on as it is: HTTP/1.1 on both sides, no header changed.")
    return fault("no-http", Hop.NETWORK, f"{error.reason}.".capitalize(), "Is the port right?")


def _judge_silence(visit: Visit) -> Finding:
    """Judge a connection that ended without an answer: a port of TLS may do that too."""
    target = parse_url(visit.url)
    if not target.secure and _speaks_tls(target, visit):
        return tls_expected()
    return fault(
        "no-answer", Hop.NETWORK, "The connection was accepted and then ended without an answer.",
        "Is that the port of the server? gunicorn ends so when a worker is killed: look into its log. A proxy in front "
        "of many servers ends so when it knows none for this host.")


def _speaks_tls(target: Target, visit: Visit) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((target.host, target.port), visit.timeout) as sock:
            with context.wrap_socket(sock, server_hostname=target.host):
                return True
    except OSError:
        return False


def _judge_tls(visit: Visit, error: ssl.SSLError) -> Finding:
    if isinstance(error, ssl.SSLCertVerificationError):
        name, remedy = _CERTIFICATES.get(error.verify_code, (
            "certificate-unknown", "Let the proxy send the whole chain (nginx: ssl_certificate with the intermediate "
            "certificates behind the own one); or trust the authority with --ca FILE."))
        return fault(name, Hop.PROXY, f"The certificate is not accepted: {error.verify_message}.", remedy)
    if _speaks_plain(visit):
        return _tls_missing()
    if "CERTIFICATE_REQUIRED" in str(error.reason) or "HANDSHAKE_FAILURE" in str(error.reason):
        return fault(
            "client-certificate", Hop.CLIENT, f"TLS is refused ({error.reason}); the server may want a certificate.",
            "--certificate FILE")
    return fault("tls-fails", Hop.NETWORK, f"TLS cannot be agreed on: {error.reason or error}.", "Look at the proxy.")


def _speaks_plain(visit: Visit) -> bool:
    """Tell whether a port takes a handshake without TLS, or refuses it in words."""
    try:
        visit.open(re.sub("^wss", "ws", visit.url)).terminate()
    except HandshakeRefused:
        return True
    except (ProtocolError, ConnectionClosed, OSError):
        return False
    return True


def _tls_missing() -> Finding:
    return fault(
        "tls-missing", Hop.CLIENT, "The port does not speak TLS, and the URL begins with wss://.",
        "Use ws:// in its place, or let the proxy do TLS (nginx: listen 443 ssl;).")


def _judge_timeout(visit: Visit, error: TimeoutError) -> Finding:
    if "opening handshake" not in str(error):
        if parse_url(visit.url).secure and _speaks_plain(visit):
            return _tls_missing()  # Some servers wait for the end of what is a request to them.
        return fault(
            "unreachable", Hop.NETWORK, f"Nobody accepts the connection within {visit.timeout:g} s.",
            "Does a firewall or a security group drop packets to this port? Are all workers busy or stuck?")
    status = _get_status(visit)
    if status is None:
        return fault(
            "all-hangs", Hop.SERVER, "The connection is accepted, and neither a handshake nor a plain request is "
            "answered.", "Do slow clients or views hold all HTTP threads of gunicorn? threads = 16, and a proxy in "
            "front that reads requests first; or HAProxy: server … maxconn.")
    return fault(
        "handshake-hangs", Hop.PROXY,
        f"The handshake is not answered within {visit.timeout:g} s, and a plain request with {status}.",
        "Is a limit on connections in the way? In HAProxy WebSockets count in server … maxconn while they are open.")


def _get_status(visit: Visit) -> int | None:
    """Return the status of a plain GET of the same address, None when it is not answered."""
    target = parse_url(visit.url)
    context = visit.options.get("ssl_context")
    asking = (
        http.client.HTTPSConnection(target.host, target.port, timeout=visit.timeout, context=context)
        if target.secure else http.client.HTTPConnection(target.host, target.port, timeout=visit.timeout))
    try:
        asking.request("GET", "/")
        return asking.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        asking.close()


def _judge_unreachable(visit: Visit, error: OSError) -> Finding:
    target = parse_url(visit.url)
    if isinstance(error, socket.gaierror):
        return fault(
            "name-unknown", Hop.NETWORK, f"{target.host} has no address ({error.strerror}).",
            "Is the name right, and does it have a record in the DNS?")
    where = visit.options.get("unix_path") or f"{target.host}, port {target.port}"
    return fault(
        "connection-refused", Hop.NETWORK, f"Nobody listens at {where} ({error.strerror or error}).",
        "Is the proxy, or gunicorn, running, and does it listen on this address (bind)?")
