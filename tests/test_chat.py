"""The chat example: its protocol with a plain client, its page in Chromium."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import Server, serve, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

CHAT = Path(__file__).parent.parent / "examples" / "chat"
# No GPU, no sandbox (there is none in a container), and no connections of the browser's own.
CHROMIUM = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]


@contextmanager
def serve_chat(bind: str = "127.0.0.1:0") -> Iterator[Server]:
    with serve("gthread", "app:app", "--chdir", str(CHAT), bind=bind) as server:
        yield server


@pytest.fixture
def chat() -> Iterator[Server]:
    with serve_chat() as server:
        yield server
    assert not server.errors()


# The protocol


class Member:
    """Somebody who takes part without a browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def say(self, payload: str | bytes) -> None:
        self._connection.send(payload)

    def hear(self, *types: str) -> dict[str, Any]:
        """Return the next event, or the next of some types."""
        while True:
            event: dict[str, Any] = json.loads(self._connection.recv(timeout=10))
            if not types or event["type"] in types:
                return event

    def hear_members(self) -> list[str]:
        """Return the names of the list of members that comes next."""
        event = self.hear()
        assert event["type"] == "members" and len({one["id"] for one in event["members"]}) == len(event["members"])
        return [one["name"] for one in event["members"]]


@contextmanager
def member(chat: Server, query: str) -> Iterator[Member]:
    with connect(chat.url(f"/ws{query}", "ws")) as connection:
        yield Member(connection)


def test_join_message_leave(chat: Server) -> None:
    with member(chat, "?name=Ada") as ada:
        assert ada.hear_members() == ["Ada"]
        with member(chat, "?name=%20Grace%0A%20H.%20") as grace, member(chat, "?name=Eve&room=cellar") as eve:
            assert ada.hear_members() == grace.hear_members() == ["Ada", "Grace H."]
            assert eve.hear_members() == ["Eve"]
            ada.say('{"id": "1", "text": " Grüße <b> \\ud83d\\ude42 "}')
            said = {"type": "message", "id": "1", "name": "Ada", "text": "Grüße <b> 🙂"}
            assert ada.hear() == grace.hear() == said
            eve.say('{"id": "2", "text": "Nobody hears me"}')
            assert eve.hear()["id"] == "2"
        assert ada.hear_members() == ["Ada"]


def test_name_refused(chat: Server) -> None:
    with member(chat, "?name=Ada") as ada:
        ada.hear("members")
        for query, what in (
            ("", "name"), ("?name=", "name"), ("?name=%20%09", "name"), ("?name=" + 25 * "x", "name"),
            ("?name=Ada&room=", "room"), ("?name=Ada&room=" + 25 * "x", "room"),
        ):
            with member(chat, query) as nobody, pytest.raises(ConnectionClosed) as caught:
                nobody.hear()
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1008, f"A {what} has 1 to 24 characters.")
        with member(chat, "?name=Grace"):
            assert ada.hear_members() == ["Ada", "Grace"]


@pytest.fixture(scope="module")
def shared_chat() -> Iterator[Server]:
    """A chat in which the members of the test before may still be leaving."""
    with serve_chat() as server:
        yield server


@pytest.mark.parametrize(("payload", "id_"), [
    ("", None),
    ("{", None),
    ("null", None),
    ('"text"', None),
    ('[{"id": "1", "text": "Hello"}]', None),
    ('{"id": 1, "text": "Hello"}', None),
    ('{"text": "Hello"}', None),
    ("[" * 10_000, None),
    ("9" * 10_000, None),
    (b"\xff\xfe\x00", None),
    ('{"id": "1"}', "1"),
    ('{"id": "1", "text": ["Hello"]}', "1"),
    ('{"id": "1", "text": " \\n"}', "1"),
    (json.dumps({"id": "1", "text": 1001 * "x"}), "1"),
    (json.dumps({"id": 41 * "1", "text": "Hello"}), 41 * "1"),
], ids=lambda value: repr(value)[:32])
def test_junk(shared_chat: Server, payload: str | bytes, id_: str | None) -> None:
    with member(shared_chat, "?name=Ada") as ada:
        ada.say(payload)
        assert ada.hear("error", "message")["id"] == id_
        ada.say(json.dumps({"id": "2", "text": 1000 * "🙂"}))  # The longest one there is, with all of it escaped.
        assert ada.hear("error", "message") == {"type": "message", "id": "2", "name": "Ada", "text": 1000 * "🙂"}
    assert not shared_chat.errors()


def test_far_too_long(chat: Server) -> None:
    with member(chat, "?name=Grace") as grace:
        grace.hear("members")
        with member(chat, "?name=Ada") as ada, pytest.raises(ConnectionClosed) as caught:
            ada.say(20_000 * "x")
            ada.hear("error")
        while grace.hear_members() != ["Grace"]:  # Ada has joined, perhaps.
            pass
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009


# The page


class Page:
    """The chat in one tab of a browser."""

    def __init__(self, browser: Any, chat: Server) -> None:
        browser.switch_to.new_window("tab")
        self.browser = browser
        self.tab = browser.current_window_handle
        browser.get(chat.url())

    def find(self, selector: str) -> Any:
        """Return the first element that matches."""
        self.browser.switch_to.window(self.tab)
        return self.browser.find_element("css selector", selector)

    def enter(self, selector: str, text: str) -> None:
        """Type a text and the Enter key."""
        self.find(selector).send_keys(f"{text}\n")

    def join(self, name: str) -> None:
        self.enter("#name", name)
        self.wait("#status", "Connected")

    def say(self, text: str) -> None:
        self.enter("#text", text)

    def read(self, selector: str) -> str:
        text: str = self.find(selector).text
        return text

    def wait(self, selector: str, text: str) -> None:
        """Wait until an element contains a text."""
        try:
            wait_until(lambda: text in self.read(selector), timeout=30)
        except AssertionError:
            raise AssertionError(f"no {text!r} in {selector}: {self.read(selector)!r}") from None

    def run(self, script: str) -> None:
        """Run JavaScript."""
        self.browser.switch_to.window(self.tab)
        self.browser.execute_script(script)

    def close(self) -> None:
        self.browser.switch_to.window(self.tab)
        self.browser.close()


@pytest.fixture
def browser(need_program: Callable[[str], str], tmp_path: Path) -> Iterator[Any]:
    if not os.environ.get("CI"):  # There it must not be missing.
        pytest.importorskip("selenium")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = need_program("chromium")
    for argument in [*CHROMIUM, f"--user-data-dir={tmp_path}"]:
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=need_program("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def test_page_conversation(chat: Server, browser: Any) -> None:
    ada = Page(browser, chat)
    ada.join("Ada")
    ada.wait("#messages", "Ada joined")
    grace = Page(browser, chat)
    grace.join("Grace")
    grace.wait("#messages", "Grace joined")
    ada.wait("#messages", "Grace joined")
    for page in (ada, grace):
        page.wait("#online-title", "2 online")
        assert page.read("#online").split() == ["Ada", "Grace"]

    question, answer = "Is <b>this</b> bold?", "No & &amp; <img src=x onerror=document.title='hacked'>"
    ada.say(question)
    grace.wait("#messages", question)
    grace.say(answer)
    for page in (ada, grace):
        page.wait("#messages", question)
        page.wait("#messages", answer)
        assert len(page.find("#messages").find_elements("css selector", ".message")) == 2
        assert len(page.find("#messages").find_elements("css selector", ".own")) == 1
        assert not page.find("#messages").find_elements("css selector", "b, img")
        assert page.read("#unconfirmed") == ""

    grace.close()
    ada.wait("#messages", "Grace left")
    assert ada.read("#online") == "Ada"


def test_page_shows_a_repeated_message_once(chat: Server, browser: Any) -> None:
    page = Page(browser, chat)
    page.join("Ada")
    with member(chat, "?name=Grace") as grace:
        for key in ("1", "1", "2"):  # As after a reconnection.
            grace.say(json.dumps({"id": key, "text": f"Message {key}"}))
    page.wait("#messages", "Message 2")
    assert [line for line in page.read("#messages").splitlines() if "Message" in line] == ["Message 1", "Message 2"]


def test_page_shows_why_a_name_is_refused(chat: Server, browser: Any) -> None:
    page = Page(browser, chat)
    page.enter("#name", "   ")
    page.wait("#refusal", "A name has 1 to 24 characters.")
    page.join("Ada")
    page.wait("#messages", "Ada joined")


def test_page_reconnects(browser: Any) -> None:
    with serve_chat() as chat:
        ada, grace = Page(browser, chat), Page(browser, chat)
        ada.join("Ada")
        grace.join("Grace")
        ada.wait("#messages", "Grace joined")
        # Grace's page would not try again for minutes, were it not told that the network is back.
        grace.run("Math.random = () => 1e6; Object.defineProperty(document, 'visibilityState', {value: 'hidden'})")
    for page in (ada, grace):
        page.wait("#status", "Reconnecting")
    ada.say("Said while the server was away")
    assert "Said while the server was away" in ada.read("#unconfirmed")
    assert "Said while the server was away" not in ada.read("#messages")

    with serve_chat(bind=f"127.0.0.1:{chat.port}"):
        ada.wait("#status", "Connected")
        ada.wait("#messages", "You are back")
        ada.wait("#messages", "Said while the server was away")
        assert ada.read("#unconfirmed") == ""
        assert "Reconnecting" in grace.read("#status")
        grace.run("window.dispatchEvent(new Event('online'))")
        grace.wait("#status", "Connected")
        ada.say("There you are")
        grace.wait("#messages", "There you are")


def test_page_gets_what_was_said_while_it_was_offline(chat: Server, browser: Any) -> None:
    page = Page(browser, chat)
    page.join("Ada")
    with member(chat, "?name=Grace") as grace, member(chat, "?name=Eve&room=cellar") as eve:
        page.wait("#online-title", "2 online")
        for said in ("first", "second"):
            go_offline(page, True)
            page.wait("#status", "Reconnecting")
            for number in range(3):
                grace.say(json.dumps({"id": f"{said} {number}", "text": f"The {said} time, {number}"}))
                eve.say(json.dumps({"id": f"{said} {number}", "text": "In another room"}))
            while grace.hear("message")["id"] != f"{said} 2":
                pass
            page.say(f"Offline for the {said} time")
            assert f"Offline for the {said} time" in page.read("#unconfirmed")
            go_offline(page, False)
            page.wait("#messages", f"Offline for the {said} time")
            page.wait("#status", "Connected")
        texts = [one.text for one in page.find("#messages").find_elements("css selector", ".message > p:last-child")]
        assert texts == [
            *[f"The first time, {number}" for number in range(3)], "Offline for the first time",
            *[f"The second time, {number}" for number in range(3)], "Offline for the second time"]
        assert page.read("#messages").count("You are back, and have missed nothing.") == 2


def test_page_that_was_left_is_no_member(chat: Server, browser: Any) -> None:
    """Though the browser keeps it, and shows it again as it was (the back/forward cache)."""
    ada, grace = Page(browser, chat), Page(browser, chat)
    ada.join("Ada")
    grace.join("Grace")
    ada.wait("#messages", "Grace joined")
    grace.run("window.wasKept = true")
    browser.get(chat.url("/static/chat.svg"))
    ada.wait("#messages", "Grace left")
    ada.say("Said while Grace was away")
    ada.wait("#messages", "Said while Grace was away")
    browser.switch_to.window(grace.tab)
    browser.back()
    assert browser.execute_script("return window.wasKept")
    grace.wait("#messages", "Said while Grace was away")
    grace.wait("#status", "Connected")


def go_offline(page: Page, offline: bool) -> None:
    page.find("#status")  # So that the tab is the current one.
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", {
        "offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1})
