"""Subprotocols: which names there may be, clients that offer none, and tokens among them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from wsthread import HandshakeError, ListenableManager, Upgrader, testing
from wsthread.wire.handshake import check_subprotocols, select_subprotocol

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("names", [[], ["chat"], ("ocpp1.6", "ocpp2.0.1"), ["wamp.2.json", "soap/1.1", "a b"]])
def test_names(names: Any) -> None:
    assert check_subprotocols(iter(names)) == tuple(names)


@pytest.mark.parametrize("name", ["", " chat", "chat ", "a,b", "a, b", ",", "a\r\nb", "a\x00", "\xe9", "\u20ac", "\t"])
def test_names_that_no_client_can_offer(name: str) -> None:
    with pytest.raises(ValueError, match=f"^subprotocols has {re.escape(repr(name))}, which no client can offer"):
        Upgrader(ListenableManager(), subprotocols=["chat", name])


@pytest.mark.parametrize("names", ["chat", 5, None, [b"chat"], [None], [["chat"]]])
def test_names_of_another_type(names: Any) -> None:
    with pytest.raises(TypeError, match="^subprotocols is "):
        Upgrader(ListenableManager(), subprotocols=names)


@pytest.mark.parametrize("value", [1, None, "yes", "chat", ["chat"]])
def test_require_subprotocol_is_a_bool(value: Any) -> None:
    with pytest.raises(TypeError, match="^require_subprotocol is .* True or False"):
        Upgrader(ListenableManager(), subprotocols=["chat"], require_subprotocol=value)


def test_nothing_to_require() -> None:
    with pytest.raises(ValueError, match="^require_subprotocol is True, but subprotocols is empty"):
        Upgrader(ListenableManager(), require_subprotocol=True)


@pytest.mark.parametrize(("offered", "found"), [
    ([], "is missing"), (["graphql-ws"], "is 'graphql-ws'"), (["a", "b"], "is 'a, b'"), (["MQTT"], "is 'MQTT'"),
    (["x" * 10_000], "is 'x{256}'"),
])
def test_required(offered: list[str], found: str) -> None:
    """The answer tells what this address speaks, what the client said, and the options."""
    with pytest.raises(HandshakeError) as info:
        select_subprotocol(offered, ["mqtt", "mqttv3.1"], True)
    assert info.value.status == 400
    assert re.fullmatch(
        r"This address speaks mqtt or mqttv3\.1 only \(the options subprotocols and require_subprotocol\), and "
        rf'Sec-WebSocket-Protocol {found}\. In a browser: new WebSocket\(url, \["mqtt"\]\)\.', info.value.reason)
    assert select_subprotocol([*offered, "mqtt"], ["mqtt", "mqttv3.1"], True) == "mqtt"


def test_connect() -> None:
    upgrader = Upgrader(ListenableManager(), subprotocols=["chat"], require_subprotocol=True)
    with testing.connect(upgrader, subprotocols=["other", "chat"]) as ws:
        assert ws.subprotocol == "chat"
    with pytest.raises(testing.Refused, match="400"):
        testing.connect(upgrader, subprotocols=["other"])
    with pytest.raises(testing.Refused, match="400"):
        testing.connect(upgrader)
    with testing.connect(Upgrader(ListenableManager(), subprotocols=["chat"]), subprotocols=["other"]) as ws:
        assert ws.subprotocol is None


# A token in the subprotocol


def recipe(heading: str) -> str:
    """Return the Python block of docs/security.rst that follows a line."""
    text = (DOCS / "security.rst").read_text().partition(heading)[2]
    block = re.search(r"\n::\n\n((?:    .*\n|\n)+)", text)
    assert block is not None
    return textwrap.dedent(block[1])


@pytest.mark.parametrize(("header", "user"), [
    ("chat, token.abc.d-e_f~", "abc.d-e_f~"), ("chat,token.x", "x"), ("token.x,chat", "x"), ("chat ,\ttoken.x", "x"),
    ("chat,,token.x,", "x"), ("chat", None), ("chat,xtoken.x", None), ("", None),
])
def test_token_in_the_subprotocol(header: str, user: str | None) -> None:
    """The recipe of the documentation, as it stands there, and whatever blanks a client puts into the list."""
    flask = pytest.importorskip("flask")
    flask_extension = pytest.importorskip("wsthread.flask")
    app = flask.Flask(__name__)
    manager = ListenableManager()
    names = {"app": app, "request": flask.request, "abort": flask.abort, "manager": manager, "user_of": lambda x: x}
    names["ws"] = flask_extension.WebSockets()
    exec(recipe("**A token in the subprotocol**"), names)
    names["ws"].init_app(app)
    manager.on_message = lambda conn, opcode, payload: conn.send(conn.request.environ["chat.user"])
    with app.test_client() as client:
        if user is None:
            with pytest.raises(testing.Refused, match="401"):
                client.websocket("/ws", headers={"Sec-WebSocket-Protocol": header})
            return
        with client.websocket("/ws", headers={"Sec-WebSocket-Protocol": header}) as ws:
            ws.send("who?")
            assert (ws.receive(), ws.subprotocol) == (user, "chat")


# Upgrade with several protocols (RFC 9110 7.8)


@pytest.mark.parametrize("more", ["h2c", "HTTP/2.0, foo/1"])
def test_upgrade_to_one_of_several(more: str) -> None:
    """An Upgrader takes the one that it speaks, and the 101 names it."""
    with testing.connect(Upgrader(ListenableManager()), headers={"Upgrade": more}) as ws:
        assert ws.response.headers["Upgrade"] == "websocket"
        ws.ping()


@pytest.mark.parametrize("more", ["h2c", "TLS/1.0"])
def test_upgrade_to_one_of_several_with_flask(more: str) -> None:
    """Werkzeug's rules do not look into the list, and what they keep from the view must not be passed by."""
    flask = pytest.importorskip("flask")
    flask_extension = pytest.importorskip("wsthread.flask")
    app = flask.Flask(__name__)
    flask_extension.WebSockets(app).route("/echo")(list)
    with pytest.raises(testing.Refused, match="400") as info:
        app.test_client().websocket("/echo", headers={"Upgrade": more})
    assert "Upgrade: websocket alone" in info.value.response.text and more in info.value.response.text
