"""The example with jobs: its protocol in process, and its page in Chromium with several workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from example_apps import EXAMPLES, hear, loaded
from servers import serve, wait_until
from test_chat import Page, browser

from wsthread import testing

__all__ = ["browser"]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Any]:
    with loaded("jobs", JOBS_DATABASE=str(tmp_path / "jobs.sqlite3")) as module:
        module.STEPS = 3
        module.STEP_TIME = 0.001
        yield module


def start(jobs: Any, title: str = "Report") -> str:
    """Start a job; return where it is."""
    answer = jobs.app.test_client().post("/jobs", data={"title": title})
    assert answer.status_code == 303
    where: str = answer.headers["Location"]
    return where


def watch(ws: testing.WebSocket) -> list[dict[str, Any]]:
    """Return what is told until the job is over."""
    told = [hear(ws)]
    while told[-1]["state"] in ("waiting", "running"):
        told.append(hear(ws))
    return told


def test_progress(jobs: Any) -> None:
    with jobs.places, jobs.places, jobs.places, jobs.places:
        where = start(jobs)
        ws = testing.connect(jobs.app, where)
        assert hear(ws)["state"] == "waiting"
    with ws:
        told = watch(ws)
    assert [(one["state"], one["step"], one["version"]) for one in told] == [
        ("running", 0, 1), ("running", 1, 2), ("running", 2, 3), ("done", 3, 4)]
    assert {(one["title"], one["steps"]) for one in told} == {("Report", 3)}


def test_whoever_comes_late_gets_the_state(jobs: Any) -> None:
    where = start(jobs, "<b>Late</b>")
    with testing.connect(jobs.app, where) as ws:
        last = watch(ws)[-1]
    with testing.connect(jobs.app, where) as ws:
        assert hear(ws) == last
    page = jobs.app.test_client().get(where).text
    assert '<progress id="bar" value="3" max="3"' in page and "&lt;b&gt;Late" in page and "<b>" not in page


def test_jobs_of_others(jobs: Any) -> None:
    one, other = start(jobs, "one"), start(jobs, "other")
    with testing.connect(jobs.app, one) as ws:
        assert {told["title"] for told in watch(ws)} == {"one"}
    assert one != other


def test_a_job_that_fails(jobs: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(seconds: float) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(jobs, "time", type("Time", (), {"sleep": staticmethod(fail), "time": staticmethod(time.time)}))
    with testing.connect(jobs.app, start(jobs)) as ws:
        last = watch(ws)[-1]
    assert (last["state"], last["step"]) == ("failed", 0)
    assert "no space left" in caplog.text


def test_a_job_whose_process_has_gone(jobs: Any) -> None:
    where = start(jobs)
    with testing.connect(jobs.app, where) as ws:
        watch(ws)
    with jobs.database() as db:
        db.execute("UPDATE jobs SET state = 'running', changed_at = changed_at - 11")
    with testing.connect(jobs.app, where) as ws:
        assert hear(ws)["state"] == "lost"


def test_there_is_no_such_job(jobs: Any) -> None:
    assert jobs.app.test_client().get("/jobs/nothing").status_code == 404
    with testing.connect(jobs.app, "/jobs/nothing") as ws:
        assert list(ws) == []
        assert ws.close_code == 4404


@pytest.mark.slow
def test_page(browser: Any, tmp_path: Path) -> None:
    env = {"JOBS_DATABASE": str(tmp_path / "jobs.sqlite3")}
    with serve("gthread", "app:app", "--workers", "4", "--chdir", str(EXAMPLES / "jobs"), env=env) as server:
        page = Page(browser, server)
        page.find("button").click()
        page.wait("#state", "Running")
        page.wait("#connection", "Live")
        where = browser.current_url
        others = [Page(browser, server) for _ in range(3)]  # Most of them are other workers'.
        for other in others:
            other.find("body")
            browser.get(where)
            other.wait("#state", "Running")
        page.find("body")
        browser.refresh()
        assert page.read("#percent") != "0 %"
        page.wait("#state", "Done")
        for other in others:
            wait_until(lambda: other.read("#percent") == "100 %")
            assert other.read("#state") == "Done"
    assert not server.errors()
