"""Which pages may connect: wildcards, the same origin plus others, look-alikes; and what the option refuses."""

from __future__ import annotations

import functools
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import bounded

from wsthread import HandshakeError, ListenableManager, Upgrader, testing
from wsthread.wire.handshake import check_origin
from wsthread.wire.origins import Origins, check_origins, is_allowed

HOST = "example.com"
BELOW = "https://*.example.com"
PORTS = "http://localhost:*"
BOTH = "https://*.example.com:*"
#: Origins that clients send which are no browsers, whatever they talk to.
DEVICES = [
    "file://",  # arduinoWebSockets
    "https://github.com/gilmaimon/TinyWebsockets",  # ArduinoWebsockets, TinyWebsockets
    "ArduinoWebSocketClient",  # Arduino-Websocket
]

ALLOWED: list[tuple[Origins, str]] = [
    ("*", "https://a.example"),
    # No page of a server.
    ("file://", "file://"), ("file:///", "file://"), ("file://", "file:///"), ("null", "null"), ("NULL", "null"),
    ("capacitor://localhost", "capacitor://localhost"), ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ("vscode-webview://0a-1b", "vscode-webview://0a-1b"), ("https://tauri.localhost", "https://tauri.localhost"),
    *((re.compile(re.escape(origin)), origin) for origin in DEVICES),
    # The slash of Go's x/net/websocket, and of people.
    ("http://localhost", "http://localhost/"), ("http://localhost/", "http://localhost"),
    (BELOW, "https://a.example.com/"),
    # All names below a domain, at any depth.
    (BELOW, "https://a.example.com"), (BELOW, "https://a.b.c-d.example.com"), (BELOW, "HTTPS://A.EXAMPLE.COM"),
    ("HTTPS://*.Example.COM/", "https://a.example.com"), (BELOW, "https://xn--bcher-kva.example.com"),
    (BELOW, "https://a_b.example.com"), ("https://*.example.com:8443", "https://a.example.com:8443"),
    ("http://*.localhost", "http://tenant.localhost"),
    # All ports.
    (PORTS, "http://localhost"), (PORTS, "http://localhost:1"), (PORTS, "http://localhost:65535"),
    ("http://[::1]:*", "http://[::1]:3000"), ("http://127.0.0.1:*", "http://127.0.0.1:5173"),
    (BOTH, "https://a.example.com"), (BOTH, "https://a.b.example.com:8443"),
    # The same origin, and others besides.
    ("same-origin", "https://example.com"), (["same-origin"], "http://example.com"),
    (["same-origin", "https://other.example"], "https://other.example"),
    (["https://other.example", "same-origin"], "https://example.com"),
    (["same-origin", PORTS, re.compile("app://.*")], "app://x"),
    # Clients that name the address of the WebSocket itself.
    (None, "ws://example.com"), (None, "wss://example.com"), (None, "WSS://Example.com:443"),
    (None, "ws://example.com:80/"), ("same-origin", "wss://example.com"),
]


@pytest.mark.parametrize(("origins", "origin"), ALLOWED)
def test_allowed(origins: Origins, origin: str) -> None:
    assert is_allowed(origin, HOST, check_origins(origins))


REFUSED: list[tuple[Origins, str]] = [
    # Look-alikes of names below a domain.
    *((BELOW, origin) for origin in (
        "https://example.com", "https://.example.com", "https://evil-example.com", "https://evilexample.com",
        "https://a.example.com.evil.com", "https://example.com.evil.com", "https://a.example.com@evil",
        "https://a.example.com@evil.com", "https://user@a.example.com", "https://a.example.com:pass@evil.com",
        "https://a.example.comevil", "https://aXexample.com", "https://a.exampleXcom", "https://evil.com/.example.com",
        "https://evil.com#.example.com", "https://evil.com?.example.com", "https://evil.com\\.example.com",
        "https://evil.com:.example.com", "https://evil.com:443.example.com", "https://evil.com\n.example.com",
        "https://a.example.com\n", "\nhttps://a.example.com", "https://evil.com%2e.example.com",
        "https://evil.com .example.com", "https://evil.com https://a.example.com", "https://a.example.com//",
        "https://a.example.com/x", "https://a.example.com:444", "https://a.example.com:443", "http://a.example.com",
        "wss://a.example.com", "xhttps://a.example.com", "https:a.example.com", "//a.example.com", "a.example.com",
        "https://*.example.com@evil.com", "https://a..example.com", "https://\xe9.example.com", "null", "", "file://")),
    # Look-alikes of ports.
    *((PORTS, origin) for origin in (
        "https://localhost", "https://localhost:3000", "http://localhost.evil.com", "http://localhost.evil.com:3000",
        "http://localhost:3000.evil.com", "http://localhost:3000@evil.com", "http://localhost:@evil.com",
        "http://localhost:", "http://localhost:x", "http://localhost:-1", "http://localhost:123456",
        "http://evil.localhost:3000", "http://evil.com#localhost:3000", "http://127.0.0.1:3000",
        "http://localhost:\u0663", "http://user@localhost:3000")),
    (BOTH, "https://a.example.com:8443.evil.com"), (BOTH, "https://example.com:8443"),
    # A domain is no pattern.
    ("https://*.ex.mple.com", "https://a.exXmple.com"),
    # The same origin.
    *((None, origin) for origin in (
        "ws://evil.com", "wss://example.com.evil.com", "ws://example.com:443", "wss://example.com:80",
        "https://example.com@evil.com", "https://evil.com@example.com", "wss://", "ws:example.com", "wsx://example.com",
        "https://example.com https://evil.com", "https://evil.com\\@example.com")),
    ("same-origin", "same-origin"), ("same-origin", "https://evil.com"), ("same-origin", "null"),
    (["same-origin", BELOW], "https://evil.com"), ([BELOW], "https://example.com"),
    # What is named in full.
    ("file://", "file://evil.com"), ("file://", "file:"), ("file://", "null"), ("null", "file://"),
    ("https://a.example", "https://a.example.evil.com"), ("https://a.example", "https://a.example//"),
    ("https://a.example", "https://a.example:443"), ("https://a.example", "wss://a.example"),
    ("https://a.example", "https://evil@a.example"), ("http://[::1]:*", "http://[::11]:3000"),
]


@pytest.mark.parametrize(("origins", "origin"), REFUSED)
def test_refused(origins: Origins, origin: str) -> None:
    assert not is_allowed(origin, HOST, check_origins(origins))


@bounded
@given(st.text(st.sampled_from("aé.-_:/@#?\\%*[] \n3evilexample.com"), max_size=40))
def test_wildcards_allow_nobody_else(middle: str) -> None:
    """Whatever stands between scheme and domain, it is names or it is refused."""
    if is_allowed(f"https://{middle}.example.com", HOST, BELOW):
        assert re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", middle)
    if is_allowed(f"https://a.example.com{middle}", HOST, BOTH):
        assert re.fullmatch(r"(:[0-9]{1,5})?/?|[a-z0-9_.-]*\.example\.com(:[0-9]{1,5})?/?", middle)


@pytest.mark.parametrize("origin", ["https://" + "a." * 500_000, "https://" + "a" * 1_000_000 + "!"])
def test_wildcards_take_linear_time(origin: str) -> None:
    begun = time.process_time()
    assert not is_allowed(origin, HOST, [BELOW, BOTH])
    assert time.process_time() - begun < 2


def allow(origin: str) -> bool:
    """Allow all."""
    return True


async def allow_async(origin: str) -> bool:
    """Allow nobody, but the coroutine is true."""
    return False


@pytest.mark.parametrize("origins", [allow, [], [re.compile("x"), PORTS], None, "*", ["*"], {"null"}])
def test_kept(origins: Any) -> None:
    kept = check_origins(origins)
    assert kept == (tuple(origins) if isinstance(origins, (list, set)) else origins)


@pytest.mark.parametrize("origins", [
    5, True, [None], [b"https://a.example"], b"https://a.example", re.compile(b"x"), [re.compile(b"x")], allow_async,
    functools.partial(allow_async),
])
def test_wrong_types(origins: Any) -> None:
    with pytest.raises(TypeError, match="^origins is "):
        check_origins(origins)


def test_a_callable_that_turns_out_to_be_async() -> None:
    """Its result would be true, and all pages would be let in."""
    with pytest.raises(TypeError, match="plain function"):
        is_allowed("https://evil.com", HOST, lambda origin: allow_async(origin))  # type: ignore


# What could never match, and what the message has to say.
MISTAKES: list[tuple[str, str]] = [
    # No scheme.
    ("example.com", "'https://example.com'"), ("example.com:8000", "'https://example.com:8000'"),
    ("localhost", "'https://localhost', or the same with http"), ("localhost:3000", "'https://localhost:3000'"),
    ("*.example.com", r"'https://\*\.example\.com'"), ("//example.com", "'https://example.com'"),
    ("example.com/app", "'https://example.com'"), ("127.0.0.1:5000", "'https://127.0.0.1:5000'"),
    ("bücher.example", "'https://xn--bcher-kva.example'"), ("http:example.com", "scheme"), ("", "empty list"),
    ("[::1]:8000", r"'https://\[::1\]:8000'"), ("None", "scheme"), ("ArduinoWebSocketClient", "scheme"),
    # More than an origin.
    ("https://example.com/app", "write 'https://example.com'; .*re.escape"),
    ("https://example.com//", "'https://example.com'"),
    ("https://example.com?x=1", "'https://example.com'"), ("https://example.com#x", "'https://example.com'"),
    ("https://user@example.com", "'https://example.com'$"),
    ("https://user:word@example.com:8000", "'https://example.com:8000'"),
    (DEVICES[1], r"write 'https://github\.com'; .*re\.escape"),
    # Ports.
    ("https://example.com:443", "'https://example.com'"), ("http://example.com:80", "'http://example.com'"),
    ("wss://example.com:443", "'wss://example.com'"), ("ws://example.com:80", "'ws://example.com'"),
    ("https://example.com:", "'https://example.com'"), ("https://example.com:08000", "'https://example.com:8000'"),
    ("https://example.com:99999", "port"), ("https://example.com:http", "port"), ("https://example.com:8*", "port"),
    # Other forms of hosts.
    ("https://bücher.example", "'https://xn--bcher-kva.example'"),
    ("https://BÜCHER.example", "'https://xn--bcher-kva.example'"),
    ("https://straße.example", "'https://xn--strae-oqa.example'"),
    ("https://*.bücher.example", r"'https://\*.xn--bcher-kva"),
    ("http://::1", r"'http://\[::1\]'"), ("http://[0:0::1]:8000", r"'http://\[::1\]:8000'"),
    ("http://[::ffff:1.2.3.4]", r"'http://\[::ffff:102:304\]'"), ("http://[fe80::1%eth0]", "host"),
    ("http://[::1", "host"),
    ("http://127.1", "host"), ("http://010.0.0.1", "host"), ("http://0x7f000001", "host"),
    ("https://ex%61mple.com", "host"),
    ("https://", "host"), ("https:///x", "host"),
    # Wildcards elsewhere.
    ("https://.example.com", r"'https://\*\.example\.com'"), ("https://*", "all names below a domain"),
    ("https://*example.com", "below"), ("https://a.*.example.com", "below"), ("https://*.*.example.com", "below"),
    ("https://example.*", "below"), ("http://192.168.1.*", "below"), ("http://*.168.1.1", "below"),
    ("https://*.", "below"),
    ("*://example.com", "each scheme"), ("http*://example.com", "each scheme"), ("chrome-extension://*", "pattern"),
    # A pattern as a str, and several in one.
    (r"https://.*\.example\.com", "compiled pattern"), (r"^https://example\.com$", "scheme"),
    ("https://a.example, https://b.example", "list"), ("https://a.example https://b.example", "list"),
    ("https://a.example,https://b.example", "list"), (" https://a.example", "write 'https://a.example'"),
    # Words.
    ("self", "'same-origin'"), ("'self'", "'same-origin'"), ("Same-Origin", "'same-origin'"), ("about:blank", "'null'"),
    ("blob:https://a.example/x", "scheme"), ("data:text/html", "'null'"), ("file:/home/x.html", "'file://'"),
    ("file:///home/x.html", "write 'file://'$"),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES)
def test_mistakes(text: str, words: str) -> None:
    """What could never match is refused when the option is given, with the right form."""
    for origins in text, ["https://fine.example", text]:
        with pytest.raises(ValueError, match=f"^origins has {re.escape(repr(text))}, which never matches: .*{words}"):
            check_origins(origins)


@bounded
@given(st.one_of(st.text(max_size=20), st.text(max_size=20).map("https://{}".format)), st.text(max_size=20))
def test_any_text(text: str, host: str) -> None:
    """Whatever the option is, it is kept or refused; and what a message tells to write is kept."""
    try:
        check_origins(text)
    except ValueError as error:
        proposed = re.search(r"write '([^']*)'", str(error))
        if proposed is not None:
            check_origins(proposed[1])
    is_allowed(text, host, [text])


# What a refusal says

NGINX = r"nginx: proxy_set_header Host \$host;"
WITH_PORT = r"nginx: proxy_set_header Host \$host:\$server_port;"
ADVICE: list[tuple[str, str, Origins, str | None, str]] = [
    # nginx: proxy_set_header Host $host.
    ("http://example.com:8080", "example.com", None, None, f"Host lacks the port.*{WITH_PORT}.*instead of .host"),
    ("https://example.com:8443", "example.com", "same-origin", None, f"Host lacks the port.*{WITH_PORT}"),
    ("http://[::1]:8080", "[::1]", ["same-origin", BELOW], None, f"Host lacks the port.*{WITH_PORT}"),
    # A development server with changeOrigin.
    ("http://localhost:5173", "127.0.0.1:5000", None, None, 'changeOrigin to false, or say origins="http://localhost:'),
    ("http://app.localhost:3000", "localhost:5000", None, None, "changeOrigin"),
    ("http://127.0.0.1:3000", "localhost:5000", None, None, 'changeOrigin.*"http://127.0.0.1:'),
    ("http://localhost:5173", "localhost:5000", None, None, "changeOrigin to false"),
    # nginx without the line, Apache.
    ("https://example.com", "127.0.0.1:8000", None, None, NGINX),
    ("https://example.com", "backend", None, None, f"{NGINX}.*ProxyFix"),
    ("https://example.com", "backend", None, "example.com", "X-Forwarded-Host: apply ProxyFix.*ProxyPreserveHost On"),
    ("https://example.com", "backend", None, "example.com, backend", "X-Forwarded-Host: apply ProxyFix"),
    ("https://example.com", "backend", None, "evil.com", NGINX),
]


@pytest.mark.parametrize(("origin", "host", "origins", "forwarded_host", "words"), ADVICE)
def test_advice(origin: str, host: str, origins: Origins, forwarded_host: str | None, words: str) -> None:
    """A 403 names the option, and the line of the proxy that has to change."""
    with pytest.raises(HandshakeError, match=r"the option origins \(Flask: WSTHREAD_ORIGINS\)") as info:
        check_origin(origin, host, origins, forwarded_host)
    assert re.search(words, info.value.reason)


@pytest.mark.parametrize("origins", ["https://a.example", [], [BELOW, re.compile("x")], re.compile("x"), str.isdigit])
@pytest.mark.parametrize("forwarded_host", [None, "example.com"])
def test_no_advice(origins: Origins, forwarded_host: str | None) -> None:
    """Where Host does not count, no proxy is to blame; X-Forwarded-Host counts nowhere."""
    with pytest.raises(HandshakeError) as info:
        check_origin("https://example.com", "example.com", origins, forwarded_host)
    assert info.value.reason.endswith("(Flask: WSTHREAD_ORIGINS) does not allow such a page.")


@pytest.mark.parametrize("origin", ["null", "file://", "chrome-extension://x", ""])
def test_no_advice_for_no_pages(origin: str) -> None:
    with pytest.raises(HandshakeError, match="does not allow such a page.$"):
        check_origin(origin, "example.com", None)


# All of it


@pytest.mark.parametrize(("origins", "origin"), [
    (["same-origin", "https://other.example"], "https://other.example"), (None, "ws://localhost"),
    ("file://", "file://"),
    ([BELOW], "https://a.example.com"),
])
def test_connect(origins: Origins, origin: str) -> None:
    with testing.connect(Upgrader(ListenableManager(), origins=origins), "/", headers={"Origin": origin}) as ws:
        ws.ping()


def test_connect_refused() -> None:
    upgrader = Upgrader(ListenableManager())
    headers = {"Origin": "https://example.com", "X-Forwarded-Host": "example.com"}
    with pytest.raises(testing.Refused, match="403") as info:
        testing.connect(upgrader, "/", headers=headers)
    assert "apply ProxyFix(x_host=1)" in info.value.response.text
    with pytest.raises(ValueError, match="'https://example.com'"):
        Upgrader(ListenableManager(), origins=["example.com"])
