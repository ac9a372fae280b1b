"""The chat example for Django: its own tests, and its pages in Chromium."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from servers import Server, serve, wait_until
from test_chat import Page, browser
from websockets.sync.client import connect

__all__ = ["browser"]

CHAT = Path(__file__).parent.parent / "examples" / "django_chat"


def run(*command: str, env: dict[str, str] | None = None) -> str:
    """Run Python in the directory of the example; return what it prints."""
    done = subprocess.run(
        [sys.executable, *command], cwd=CHAT, env={**os.environ, **(env or {})}, text=True, timeout=100,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("command", [["-W", "error", "manage.py", "test"], ["-m", "pytest", "-q", "."]], ids=str)
def test_its_own_tests(command: list[str], tmp_path: Path) -> None:
    """With Django's test runner, and with pytest."""
    output = run(*command, env={"CHAT_DATABASE": str(tmp_path / "chat.sqlite3")})
    assert "Ran 7 tests" in output or "7 passed" in output


def test_migrations_are_complete() -> None:
    run("manage.py", "makemigrations", "--check", "--dry-run")


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Server]:
    env = {"CHAT_DATABASE": str(tmp_path / "chat.sqlite3")}
    run("manage.py", "migrate", "--verbosity", "0", env=env)
    with serve("gthread", "chat.wsgi", "--chdir", str(CHAT), env=env) as server:
        yield server
    assert not server.errors()


class Tab(Page):
    """The chat in one tab."""

    def read(self, selector: str) -> str:
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

        try:
            return super().read(selector)
        except (NoSuchElementException, StaleElementReferenceException):
            return ""  # The next page is being loaded.

    def sign_up(self, name: str) -> None:
        self.browser.get(self.browser.current_url.partition("/login/")[0] + "/signup/")
        for field in ("password1", "password2"):
            self.find(f"#id_{field}").send_keys("correct horse")
        self.enter("#id_username", name)
        self.wait("#me", name)

    def log_in(self, name: str) -> None:
        self.find("#id_username").send_keys(name)
        self.enter("#id_password", "correct horse")
        self.wait("#me", name)

    def enter_room(self, room: str) -> None:
        self.enter("#room", room)
        self.wait("#status", "Connected")


def test_log_in_chat_log_out(chat: Server, browser: Any) -> None:
    ada = Tab(browser, chat)
    ada.sign_up("ada")
    ada.enter_room("lobby")
    ada.wait("#online", "ada")
    second = Tab(browser, chat)
    second.enter_room("lobby")
    text = "Is <b>this</b> bold?"
    ada.say(text)
    for page in (ada, second):
        page.wait("#messages", f"ada{text}")
        assert not page.find("#messages").find_elements("css selector", "li span b")
    second.say("No")
    ada.wait("#messages", "No")

    second.find("#logout").click()
    second.wait("h1", "Log in")
    ada.wait("h1", "Log in")  # Its WebSocket was closed, so the page has gone there by itself.
    assert chat.access("/ws/room/lobby/", 101) == 2

    ada.log_in("ada")  # Back to the room.
    ada.wait("#messages", text)
    ada.wait("#status", "Connected")


def test_a_session_that_ended_meanwhile(chat: Server, browser: Any) -> None:
    """The page whose handshake is refused asks why, and goes to the login."""
    ada = Tab(browser, chat)
    ada.sign_up("ada")
    ada.enter_room("lobby")
    ada.run("Math.random = () => 0")
    browser.delete_all_cookies()
    worker = chat.worker()
    chat.signal(signal.SIGHUP)  # A new worker, and all have to come back.
    wait_until(lambda: chat.worker() != worker)
    ada.wait("h1", "Log in")


def test_who_is_there_with_several_workers(tmp_path: Path, browser: Any) -> None:
    env = {"CHAT_DATABASE": str(tmp_path / "chat.sqlite3")}
    run("manage.py", "migrate", "--verbosity", "0", env=env)
    with serve("gthread", "chat.wsgi", "--workers", "4", "--chdir", str(CHAT), env=env) as chat:
        ada = Tab(browser, chat)
        ada.sign_up("ada")
        ada.enter_room("lobby")
        cookies = {one["name"]: one["value"] for one in browser.get_cookies()}
        header = "; ".join(f"{name}={value}" for name, value in cookies.items())
        url = chat.url("/ws/room/lobby/", "ws")
        with ExitStack() as stack:
            others = [
                stack.enter_context(connect(url, additional_headers={"Cookie": header})) for _ in range(8)]
            browser.delete_all_cookies()
            grace = Tab(browser, chat)
            grace.sign_up("grace")
            grace.enter_room("lobby")
            for page in (ada, grace):
                page.wait("#online", "ada, grace")
            for other in others:  # Those of each worker are told.
                while json.loads(other.recv(timeout=30)) != {"type": "online", "names": ["ada", "grace"]}:
                    pass
            grace.say("Is everybody here?")
            ada.wait("#messages", "Is everybody here?")
            ada.close()
            grace.wait("#online", "ada, grace")  # In the others.
        wait_until(lambda: grace.read("#online") == "grace")
    assert not chat.errors()


def test_command(need_program: Callable[[str], str]) -> None:
    """``make run-django`` is what the first lines of the example promise."""
    make = need_program("make")
    plan = subprocess.run(
        [make, "--dry-run", "run-django"], cwd=CHAT.parent.parent, text=True, stdout=subprocess.PIPE, check=True)
    assert "manage.py migrate" in plan.stdout and "chat.wsgi" in plan.stdout and "--workers 1 " in plan.stdout
    assert "make run-django" in (CHAT / "chat" / "__init__.py").read_text().splitlines()[0]
