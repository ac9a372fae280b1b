"""What may still be wrong when a WebSocket is open: it is closed or cut, nothing passes, broadcasts miss some."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..client import ClientConnection
from ..exceptions import ConnectionClosed, ProtocolError
from .findings import Finding, Hop, fault, note, warning
from .visit import Visit

#: Seconds in which an application closes that does not want a connection.
AT_ONCE = 0.5
#: Seconds that a Ping takes where something is slow.
SLOW = 1.0
#: Seconds of idleness in which a Ping of the server has to come: its default is 20.
LONG = 25.0
#: Connections that a broadcast has to reach.
_AUDIENCE = 8


def judge_open(visit: Visit, connection: ClientConnection, say: Callable[[str], object]) -> list[Finding]:
    """Return what is wrong with an open WebSocket; a note when idle ones were not looked at.

    Args:
        visit: what to look at.
        connection: just opened; the caller ends it.
        say: is told what is being done when that takes long.
    """
    try:
        try:
            connection.receive(timeout=AT_ONCE)
        except TimeoutError:
            pass
        begin = time.monotonic()
        connection.ping()
        rtt = time.monotonic() - begin
    except ConnectionClosed as error:
        return [_judge_close(error)]
    except ProtocolError as error:
        return [fault("broken-frames", Hop.PROXY, f"What comes is no WebSocket: {error.reason}.", "Look at the proxy.")]
    except TimeoutError:
        return [fault(
            "no-pong", Hop.PROXY, "The WebSocket is open, and a Ping is not answered.",
            "Does the proxy pass on what comes behind a 101 at once, in both directions?")]
    findings = []
    if rtt > SLOW:
        findings.append(warning("slow", Hop.SERVER, f"A Ping took {rtt:.1f} s.", "Is a worker busy or swapping?"))
    if visit.broadcast is not None:
        findings += _judge_broadcast(visit, visit.broadcast)
    if visit.idle:
        say(f"staying idle for {visit.idle:g} s …")
        findings += _judge_idle(visit, connection)
    else:
        findings.append(note(
            "idle-unknown", Hop.PROXY, "Whether idle WebSockets live was not looked at.", "doctor URL --idle 75"))
    return findings


def _judge_close(error: ConnectionClosed) -> Finding:
    if error.code == 1006:
        return fault(
            "cut-at-once", Hop.PROXY, "The WebSocket was opened and cut at once, without a Close.",
            "Does the proxy take the 101 for the end of a request? Else a worker was killed: look into gunicorn's log.")
    hints = {
        1001: "The server is being stopped.", 1011: "An exception in the application: look into its log.",
        1013: "The server has no room: look into its log."}
    return fault(
        "closed-at-once", Hop.APPLICATION, f"The application {str(error)} at once.".replace("closed", "closes", 1),
        hints.get(error.code or 0, "The application does not want this client; it may want a cookie (--header)."))


def _judge_idle(visit: Visit, connection: ClientConnection) -> list[Finding]:
    """Stay without a message of ours, and answer Pings as a browser does."""
    begin = time.monotonic()
    pings = connection.pings
    try:
        while (left := begin + visit.idle - time.monotonic()) > 0:
            try:
                connection.receive(timeout=left)
            except TimeoutError:
                break
        connection.ping()
    except (ConnectionClosed, TimeoutError) as error:
        lasted = time.monotonic() - begin
        came = connection.pings - pings
        if isinstance(error, ConnectionClosed) and error.code != 1006:
            return [fault(
                "closed-idle", Hop.APPLICATION, f"An idle WebSocket was {error} after {lasted:.1f} s.",
                "The application's read_timeout, or what it does itself; a worker may have been stopped.")]
        return [fault(
            "idle-cut", Hop.PROXY,
            f"An idle WebSocket was cut after {lasted:.1f} s without a Close; {came} Pings of the server came.",
            "nginx: proxy_read_timeout, HAProxy: timeout tunnel, a load balancer: its idle timeout; or a ping_interval "
            "in the application that is shorter.")]
    if connection.pings == pings and visit.idle >= LONG:
        return [warning(
            "no-pings", Hop.APPLICATION, f"No Ping of the server came in {visit.idle:g} s, so proxies cut idle "
            "WebSockets some day, and dead clients are not noticed.", "ping_interval = 20")]
    return []


def _judge_broadcast(visit: Visit, message: str) -> list[Finding]:
    """Look whether what one client says reaches others, on whichever worker they are."""
    connections: list[ClientConnection] = []
    try:
        while len(connections) < _AUDIENCE:
            connections.append(visit.open(origin=visit.origin))
        _receive_all(connections[-1], AT_ONCE)  # What they are greeted with.
        for connection in connections:
            _receive_all(connection, 0)
        connections[0].send(message)
        end = time.monotonic() + min(visit.timeout, 2.0)
        reached = sum(
            any(message in str(found) for found in _receive_all(connection, end - time.monotonic(), message))
            for connection in connections)
    finally:
        for connection in connections:
            connection.terminate()
    if reached == len(connections):
        return []
    return [fault(
        "broadcast-lost", Hop.SERVER, f"The message reached {reached} of {len(connections)} clients: the others are "
        "connected to other workers, or it is not sent to all.",
        "Managers of one gunicorn need the same name; several gunicorns, or hosts, need a backplane; or workers = 1.")]


def _receive_all(connection: ClientConnection, timeout: float, wanted: str | None = None) -> list[str | bytes]:
    """Return the messages that come in time, up to the one that is wanted."""
    found: list[str | bytes] = []
    end = time.monotonic() + timeout
    try:
        while wanted is None or not found or wanted not in str(found[-1]):
            found.append(connection.receive(timeout=max(end - time.monotonic(), 0)))
    except (TimeoutError, ConnectionClosed):
        pass
    return found
