"""The dashboard: what it sends in process, and its page in Chromium with several workers and another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from example_apps import EXAMPLES, hear, loaded
from servers import serve
from test_chat import Page, browser

from wsthread import testing

__all__ = ["browser"]

FIRST = [{"name": "Visitors", "value": 120}, {"name": "Orders", "value": 34}, {"name": "Open tickets", "value": 7}]


@pytest.fixture
def database(tmp_path: Path) -> str:
    return str(tmp_path / "dashboard.sqlite3")


@pytest.fixture
def dashboard(database: str) -> Iterator[Any]:
    with loaded("dashboard", DASHBOARD_DATABASE=database) as module:
        module.LOOK_EVERY = 0.01
        yield module


def put(database: str, name: str, value: int) -> None:
    """Change a figure as another process does."""
    subprocess.run(
        [sys.executable, str(EXAMPLES / "dashboard" / "app.py"), name, str(value)], timeout=30, check=True,
        env={**os.environ, "DASHBOARD_DATABASE": database})


def await_figure(ws: testing.WebSocket, name: str, value: int) -> None:
    """Wait until a dashboard shows a figure."""
    while {"name": name, "value": value} not in hear(ws):
        pass


def test_changes(dashboard: Any, database: str) -> None:
    client = dashboard.app.test_client()
    with client.websocket("/ws") as one, client.websocket("/ws") as two:
        assert hear(one) == hear(two) == FIRST
        assert client.post("/figures", data={"name": " Orders ", "value": "35"}).status_code == 303
        for ws in (one, two):
            await_figure(ws, "Orders", 35)
        put(database, "Visitors", 121)
        for ws in (one, two):
            await_figure(ws, "Visitors", 121)
        with client.websocket("/ws") as late:
            assert [figure["value"] for figure in hear(late)] == [121, 35, 7]  # In the same order as before.


def test_waiting_holds_no_database_connection(dashboard: Any, database: str) -> None:
    def count() -> int:
        links = [os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
        return sum(os.path.exists(link) and os.path.realpath(link) == os.path.realpath(database) for link in links)

    client = dashboard.app.test_client()
    many = [client.websocket("/ws") for _ in range(10)]
    for ws in many:
        ws.wait_handled()
    dashboard.put("Orders", 36)
    for ws in many:
        await_figure(ws, "Orders", 36)
    assert count() <= 2  # That of the thread that watches; and one, perhaps, that it reads with at this moment.
    for ws in many:
        ws.close()


@pytest.mark.parametrize("form", [
    {}, {"name": "Orders"}, {"value": "1"}, {"name": " ", "value": "1"}, {"name": "x" * 41, "value": "1"},
    {"name": "Orders", "value": "many"}, {"name": "Orders", "value": "-1"}, {"name": "Orders", "value": "9" * 30},
], ids=str)
def test_a_form_that_makes_no_sense(dashboard: Any, form: dict[str, str]) -> None:
    client = dashboard.app.test_client()
    assert client.post("/figures", data=form).status_code == 400
    with client.websocket("/ws") as ws:
        assert hear(ws) == FIRST


def test_the_database_may_fail_for_a_while(
    dashboard: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    figures = dashboard.figures
    failures = iter([dashboard.sqlite3.OperationalError("database is locked")])
    client = dashboard.app.test_client()
    with client.websocket("/ws") as ws:
        hear(ws)

        def fail_once() -> str:
            for error in failures:
                raise error
            told: str = figures()
            return told

        monkeypatch.setattr(dashboard, "figures", fail_once)
        dashboard.put("Orders", 1)
        await_figure(ws, "Orders", 1)
    assert "The database does not answer" in caplog.text


@pytest.mark.slow
def test_page(browser: Any, database: str) -> None:
    env = {"DASHBOARD_DATABASE": database}
    with serve("gthread", "app:app", "--workers", "4", "--chdir", str(EXAMPLES / "dashboard"), env=env) as server:
        pages = [Page(browser, server) for _ in range(3)]
        for page in pages:
            page.wait("#status", "Live")
            page.wait("#figures", "120")
        pages[0].find("[name=name]").send_keys("Returns")
        pages[0].enter("[name=value]", "4")
        for page in pages:
            page.wait("#figures", "Returns\n4")
        put(database, "Visitors", 2121)
        for page in pages:
            page.wait("#figures", "2,121")
        assert pages[0].find("[name=name]").get_attribute("value") == ""
    assert not server.errors()
