"""The public names: what an application may use, reviewed name by name; and that nobody uses another's private ones.

Whoever adds a public name adds it here, and asks whether an application needs it.
"""

from __future__ import annotations

import ast
import socket
from http import HTTPStatus
from pathlib import Path
from types import ModuleType

import flask.testing
import pytest
from django.http import HttpResponse
from peer import Connect, connect, run_handler
from werkzeug.test import Client
from werkzeug.wrappers import Response

import wsthread
import wsthread.client
import wsthread.django
import wsthread.django_testing
import wsthread.flask
import wsthread.prometheus
import wsthread.testing
from wsthread import exceptions

__all__ = ["connect"]

PACKAGE = Path(wsthread.__file__).parent
MANAGER = {
    "broadcast", "call", "close", "close_where", "connections", "dump", "get", "in_group", "members", "notify",
    "on_gap", "on_members", "on_notify", "options", "report_close", "report_error", "report_slow", "serve", "shutdown",
    "stats",
}
CLIENT_CONNECTION = {
    "close", "close_code", "close_reason", "closed", "closed_error", "ping", "receive", "send", "terminate",
}
OF_CLIENTS = {"headers", "pings", "subprotocol", "timeout"}
#: What a class has, and what each object of it has besides.
CLASSES: dict[type, tuple[set[str], set[str]]] = {
    wsthread.Connection: ({
        "close", "close_code", "close_reason", "closed", "connected", "context", "groups", "id", "join", "latency",
        "leave", "ping", "post", "queued_bytes", "receive", "receive_json", "receive_message", "remote_address",
        "request", "send", "send_json", "state", "subprotocol", "terminate",
    }, set()),
    wsthread.Manager: (MANAGER - {"options"}, {"options"}),
    wsthread.ListenableManager: (
        MANAGER - {"options"} | {"on_close", "on_connect", "on_error", "on_message", "on_slow"}, {"options"}),
    wsthread.SimpleManager: (MANAGER - {"options"}, {"options"}),
    wsthread.Upgrader: ({"upgrade"}, set()),
    wsthread.Broadcast: ({"dropped", "failed", "queued", "sent"}, set()),
    wsthread.State: ({"CLOSED", "CLOSING", "CONNECTING", "OPEN"}, {"name", "value"}),
    wsthread.Opcode: ({"BINARY", "CLOSE", "CONTINUATION", "PING", "PONG", "TEXT"}, {"name", "value"}),
    wsthread.CloseCode: ({
        "ABNORMAL_CLOSURE", "BAD_GATEWAY", "GOING_AWAY", "INTERNAL_ERROR", "INVALID_DATA", "MANDATORY_EXTENSION",
        "MESSAGE_TOO_BIG", "NORMAL_CLOSURE", "NO_STATUS_RCVD", "POLICY_VIOLATION", "PROTOCOL_ERROR",
        "SERVICE_RESTART", "TLS_HANDSHAKE", "TRY_AGAIN_LATER", "UNSUPPORTED_DATA",
    }, {"name", "value"}),
    wsthread.Deflate: ({
        "client_context_takeover", "client_max_window_bits", "level", "negotiate", "server_context_takeover",
        "server_max_window_bits", "threshold",
    }, set()),
    wsthread.WebSocketError: (set(), set()),
    wsthread.HandshakeError: (set(), {"cause", "headers", "reason", "status"}),
    wsthread.HandshakeRefused: (set(), {"body", "headers", "reason", "status"}),
    wsthread.DetachError: (set(), set()),
    wsthread.ProtocolError: ({"code"}, {"reason"}),
    wsthread.RateExceeded: ({"code"}, {"reason"}),
    wsthread.InvalidPayload: ({"code"}, {"reason"}),
    wsthread.MessageTooBig: ({"code"}, {"reason"}),
    wsthread.InvalidJSON: (set(), {"message", "reason"}),
    wsthread.BackplaneFull: (set(), set()),
    wsthread.ConnectionClosed: (set(), {"code", "reason"}),
    wsthread.client.ClientConnection: (CLIENT_CONNECTION, OF_CLIENTS),
    wsthread.testing.WebSocket: (CLIENT_CONNECTION | {"wait_handled"}, OF_CLIENTS | {"connection", "response"}),
    wsthread.testing.Refused: (set(), {"body", "headers", "reason", "response", "status"}),
    wsthread.flask.WebSockets: (
        {"handler", "init_app", "manager", "messages", "mount", "route", "upgrade"}, set()),
    wsthread.flask.WebSocketClient: ({"websocket"}, set()),
    wsthread.django.WebSocketMiddleware: (set(), set()),
}
#: What these have from elsewhere.
BASES: tuple[type, ...] = (BaseException, tuple, int, flask.testing.FlaskClient)
MODULES: dict[ModuleType, set[str]] = {
    wsthread.client: {"ClientConnection", "connect", "new_key", "receive_answer"},
    wsthread.django: {"WebSocketMiddleware", "get_manager", "messages", "request_of", "websocket"},
    wsthread.django_testing: {"connect"},
    wsthread.flask: {"WebSocketClient", "WebSockets"},
    wsthread.prometheus: {"Collector"},
    wsthread.testing: {"Refused", "WebSocket", "advance", "connect"},
}


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def own_names(thing: object, kind: type) -> set[str]:
    """Return the public names of a class or an object, but for those that it has from a class of others."""
    return public(thing).difference(*(public(base) for base in BASES if issubclass(kind, base)))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_names_of_classes(kind: type) -> None:
    names, _ = CLASSES[kind]
    assert own_names(kind, kind) == names


def test_each_public_class_is_reviewed() -> None:
    exported = {getattr(wsthread, name) for name in wsthread.__all__}
    exported |= {vars(exceptions)[name] for name in public(exceptions) if name.endswith(("Error", "Refused", "Full"))}
    for module in (wsthread.client, wsthread.django, wsthread.flask, wsthread.testing):
        exported |= {getattr(module, name) for name in MODULES[module]}
    assert {one for one in exported if isinstance(one, type)} == set(CLASSES)


def test_names_of_objects(connect: Connect) -> None:
    conn, _ = run_handler(connect, lambda conn: None)
    ours, theirs = socket.socketpair()
    refusal = Client(Response("no", 403)).get("/")
    echo = wsthread.Upgrader(wsthread.SimpleManager(list))
    with ours, theirs, wsthread.testing.connect(echo) as client:
        objects: list[object] = [
            conn, wsthread.Manager(), wsthread.ListenableManager(), wsthread.SimpleManager(lambda conn: None),
            wsthread.Upgrader(wsthread.Manager()), wsthread.Broadcast(0, 0, 0, 0), wsthread.State.OPEN,
            wsthread.Opcode.TEXT, wsthread.CloseCode.GOING_AWAY, wsthread.Deflate(), wsthread.WebSocketError(),
            wsthread.HandshakeError(HTTPStatus.FORBIDDEN, ""), wsthread.HandshakeRefused(403), wsthread.DetachError(),
            wsthread.ProtocolError(""), wsthread.InvalidPayload(""), wsthread.MessageTooBig(""),
            wsthread.RateExceeded(""), wsthread.InvalidJSON("", ""), wsthread.BackplaneFull(),
            wsthread.ConnectionClosed(), wsthread.client.ClientConnection(ours), client,
            wsthread.testing.Refused(refusal), wsthread.flask.WebSockets(),
            wsthread.django.WebSocketMiddleware(lambda request: HttpResponse()),
        ]
    for one in objects:
        names, besides = CLASSES[type(one)]
        assert own_names(one, type(one)) | names == names | besides, one
    assert {type(one) for one in objects} == set(CLASSES) - {wsthread.flask.WebSocketClient}


def test_names_of_the_package() -> None:
    assert wsthread.__all__ == sorted(wsthread.__all__)
    assert set(wsthread.__all__) == {
        "BackplaneFull", "Broadcast", "CloseCode", "Connection", "ConnectionClosed", "Deflate", "DetachError",
        "HandshakeError", "HandshakeRefused", "InvalidJSON", "InvalidPayload", "ListenableManager", "Manager",
        "MessageTooBig", "Opcode", "ProtocolError", "RateExceeded", "SimpleManager", "State",
        "Upgrader", "WebSocketError", "dump_on_signal",
    }


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_names_of_modules(module: ModuleType) -> None:
    """They hold what an application uses, and what they import."""
    own = {name for name in public(module) if getattr(getattr(module, name), "__module__", None) == module.__name__}
    assert own == MODULES[module]


#: Private names that a module uses and does not define itself, and why it may.
NOT_OURS = {
    "_asdict": "part of the documented interface of a NamedTuple, in spite of its name",
    "_get_current_object": "how Werkzeug's proxies say what they stand for; documented",
    "_getframe": "of sys; documented, and inspect's own way to the stack of a thread",
    "_current_frames": "of sys; documented, and there is no other way to see what a thread does",
    "_update_cookies_from_response": "Werkzeug's; the only way to give its test client the cookies of a 101",
    "_Compress": "zlib's types have no other names",
    "_Decompress": "likewise",
}
EXAMPLE = """
from .b import C, _imported
class A:
    __slots__ = ("_slot",)
    _class_level = 1
    def __init__(self, other):
        self._own = other._foreign
        other._stored = self._inherited
    def _method(self, other):
        return other._own, other._method, other._slot, other._class_level, other.__class__, self._asdict
"""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def foreign_names(source: str) -> set[str]:
    """Return the private names that a module uses, of whatever, and does not define itself.

    What a module defines are its functions and classes, its variables and those of its classes, its slots, and what it
    assigns to an attribute of ``self`` or ``cls``.
    """
    defined, used = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            defined.add(node.value)  # A slot.
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
            if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) in ("self", "cls"):
                defined.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.level:
            used |= {alias.name for alias in node.names}
            defined -= {alias.name for alias in node.names}
    return {name for name in used - defined - set(NOT_OURS) if is_private(name)}


def test_foreign_names_are_found() -> None:
    """The test itself finds what is another's, by whatever name it is used."""
    assert foreign_names(EXAMPLE) == {"_foreign", "_stored", "_inherited", "_imported"}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_stay_in_their_module(path: Path) -> None:
    """Also those of a base class: what a subclass in another room uses is no private matter."""
    assert foreign_names(path.read_text()) == set()


def test_each_exception_is_needed() -> None:
    """A name that nobody uses any more leaves the list."""
    text = "\n".join(path.read_text() for path in FILES)
    assert [name for name in NOT_OURS if f".{name}" not in text] == []
