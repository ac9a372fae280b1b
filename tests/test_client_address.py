"""Whose connection it is: networks, proxies, Unix sockets; and the limit that counts by it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import bounded
from werkzeug.middleware.proxy_fix import ProxyFix

from wsthread import ListenableManager, Upgrader, testing
from wsthread.client_address import client_of, may_be_proxy

CLIENTS: list[tuple[str, str | None]] = [
    ("1.2.3.4", "1.2.3.4"), ("127.0.0.1", "127.0.0.1"), ("10.0.0.1", "10.0.0.1"),
    # A network is a client.
    ("2001:db8:1:2::1", "2001:db8:1:2::/64"), ("2001:DB8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
    ("2001:db8:1:3::1", "2001:db8:1:3::/64"), ("::1", "::/64"),
    # IPv4 in IPv6: sockets for both, and NAT64.
    ("::ffff:1.2.3.4", "1.2.3.4"), ("::ffff:102:304", "1.2.3.4"), ("64:ff9b::1.2.3.4", "1.2.3.4"),
    # All neighbours are in one /64.
    ("fe80::1", "fe80::1"), ("fe80::2%eth0", "fe80::2%eth0"),
    # With a port, as some proxies write it into X-Forwarded-For.
    ("1.2.3.4:5678", "1.2.3.4"), ("[2001:db8:1:2::1]:5678", "2001:db8:1:2::/64"), ("[2001:db8::1]", "2001:db8::/64"),
    # Unknown.
    ("", None), ("unix:", None), ("unknown", None), ("_hidden", None), ("localhost", None), ("1.2.3", None),
    ("1.2.3.4, 5.6.7.8", None), ("/run/app.sock", None), ("1.2.3.4:", None), ("[1.2.3.4", None),
]


@pytest.mark.parametrize(("address", "client"), CLIENTS)
def test_client(address: str, client: str | None) -> None:
    assert client_of({"REMOTE_ADDR": address}, 64) == client


@pytest.mark.parametrize(("prefix", "client"), [
    (128, "2001:db8:1:2:3::/128"), (56, "2001:db8:1::/56"), (48, "2001:db8:1::/48"), (1, "::/1")])
def test_prefix(prefix: int, client: str) -> None:
    assert client_of({"REMOTE_ADDR": "2001:db8:1:2:3::"}, prefix) == client
    assert client_of({"REMOTE_ADDR": "1.2.3.4"}, prefix) == "1.2.3.4"


@pytest.mark.parametrize(("address", "headers", "client"), [
    # A proxy on this host, and nobody reads what it says.
    ("127.0.0.1", {"HTTP_X_FORWARDED_FOR": "1.2.3.4"}, None),
    ("::1", {"HTTP_X_FORWARDED_FOR": "2001:db8::1"}, None),
    ("::ffff:127.0.0.1", {"HTTP_X_FORWARDED_FOR": "1.2.3.4"}, None),
    ("127.0.0.1", {"HTTP_X_REAL_IP": "1.2.3.4"}, None),
    ("127.0.0.1", {"HTTP_FORWARDED": "for=1.2.3.4;proto=https"}, None),
    # It is read, or names the same.
    ("127.0.0.1", {"HTTP_X_FORWARDED_FOR": "127.0.0.1"}, "127.0.0.1"),
    ("127.0.0.1", {"HTTP_X_FORWARDED_FOR": "1.2.3.4, 127.0.0.1"}, "127.0.0.1"),
    ("127.0.0.1", {"HTTP_X_FORWARDED_FOR": ""}, "127.0.0.1"),
    # From elsewhere a header is no way around the limit.
    ("1.2.3.4", {"HTTP_X_FORWARDED_FOR": "5.6.7.8"}, "1.2.3.4"),
    ("10.0.0.1", {"HTTP_X_FORWARDED_FOR": "5.6.7.8"}, "10.0.0.1"),
    ("2001:db8::1", {"HTTP_X_FORWARDED_FOR": "5.6.7.8", "HTTP_X_REAL_IP": "5.6.7.8"}, "2001:db8::/64"),
])
def test_proxies(address: str, headers: dict[str, str], client: str | None) -> None:
    assert client_of({"REMOTE_ADDR": address, **headers}, 64) == client


@pytest.mark.parametrize(("address", "forwarded", "answer"), [
    ("10.0.0.1", "1.2.3.4", True), ("172.17.0.1", "1.2.3.4", True), ("fd00::1", "1.2.3.4", True),
    ("10.0.0.1", "", False), ("10.0.0.1", "10.0.0.1", False), ("8.8.8.8", "1.2.3.4", False), ("", "1.2.3.4", False),
])
def test_may_be_proxy(address: str, forwarded: str, answer: bool) -> None:
    assert may_be_proxy({"REMOTE_ADDR": address, "HTTP_X_FORWARDED_FOR": forwarded}) is answer


@bounded
@given(st.one_of(st.text(max_size=30), st.from_regex(r"[\[\]0-9a-f:.%]{0,30}", fullmatch=True)), st.text(max_size=30))
def test_anything(address: str, forwarded: str) -> None:
    """Whatever a proxy made of it, there is an answer, and it is the same again."""
    environ = {"REMOTE_ADDR": address, "HTTP_X_FORWARDED_FOR": forwarded}
    assert client_of(environ, 64) == client_of(environ, 64)
    may_be_proxy(environ)


def test_without_an_address() -> None:
    assert client_of({}, 64) is None


# The limit


class House:
    """An application with a limit of two connections per address."""

    def __init__(self, proxy_fix: bool = False, **options: Any) -> None:
        self.manager = ListenableManager(max_connections_per_address=2, **options)
        upgrader = Upgrader(self.manager)
        self._app = ProxyFix(upgrader, x_for=1) if proxy_fix else upgrader
        self._opened: list[testing.WebSocket] = []

    def open(self, address: str, forwarded: str | None = None) -> testing.WebSocket:
        headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
        ws = testing.connect(self._app, headers=headers, environ_overrides={"REMOTE_ADDR": address})
        self._opened.append(ws)
        return ws

    def __enter__(self) -> House:
        return self

    def __exit__(self, *args: object) -> None:
        for ws in self._opened:
            ws.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings about unknown addresses."""
    return [text for text in caplog.messages if "address is unknown" in text]


@pytest.mark.parametrize(("address", "forwarded"), [("", None), ("", "1.2.3.4"), ("127.0.0.1", "1.2.3.4")])
def test_unknown_clients_are_not_one(
    address: str, forwarded: str | None, caplog: pytest.LogCaptureFixture,
) -> None:
    """They are let in, and one warning says why."""
    with caplog.at_level(logging.WARNING), House() as house:
        for _ in range(4):
            house.open(address, forwarded)
    message, = warnings(caplog)
    assert "max_connections_per_address" in message and "ProxyFix(app.wsgi_app, x_for=1)" in message
    assert repr(address) in message and repr(forwarded) in message


@pytest.mark.parametrize(("first", "second", "third", "other"), [
    ("1.2.3.4", "1.2.3.4", "::ffff:1.2.3.4", "1.2.3.5"),
    ("2001:db8::1", "2001:db8::2", "2001:db8::ffff:1", "2001:db8:0:1::1"),
])
def test_known_clients(
    first: str, second: str, third: str, other: str, caplog: pytest.LogCaptureFixture,
) -> None:
    """A network counts as one, and one that leaves makes room."""
    with House() as house:
        leaving = house.open(first)
        house.open(second)
        with pytest.raises(testing.Refused, match="429") as info:
            house.open(third)
        assert "max_connections_per_address is 2." in info.value.response.text
        house.open(other)
        leaving.close()
        house.open(third)
    assert not warnings(caplog)


def test_each_address_for_itself() -> None:
    with House(ipv6_prefix=128) as house:
        for number in range(1, 5):
            house.open(f"2001:db8::{number}")


def test_with_proxy_fix(caplog: pytest.LogCaptureFixture) -> None:
    """Clients are told apart, also one on the proxy's own host; with ports, they are one all the same."""
    with House(proxy_fix=True) as house:
        for address in "1.2.3.4", "5.6.7.8", "127.0.0.1":
            house.open("127.0.0.1", f"evil, {address}")
            house.open("127.0.0.1", f"{address}:5000")
            with pytest.raises(testing.Refused, match="429"):
                house.open("127.0.0.1", f"{address}:5001")
    assert not warnings(caplog)


def test_proxy_on_another_host() -> None:
    """It stays a client, for it cannot be told from one; the answer says what it may be."""
    with House() as house:
        house.open("10.0.0.1", "1.2.3.4")
        house.open("10.0.0.1", "5.6.7.8")
        with pytest.raises(testing.Refused, match="429") as info:
            house.open("10.0.0.1", "9.9.9.9")
        assert "may be a proxy's: apply ProxyFix" in info.value.response.text
