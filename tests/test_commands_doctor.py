"""wsthread doctor: what it prints; what it finds is tested with the rooms that find it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servers import serve_here

from wsthread import ListenableManager
from wsthread.commands import main
from wsthread.commands.doctor import as_text
from wsthread.doctor.findings import Hop, fault, note, warning

BAD = fault("upgrade-lost", Hop.PROXY, "It is missing.", "proxy_set_header …;")
ODD = warning("few-threads", Hop.SERVER, "There are 2.", "threads = 16")
SMALL = note("workers", Hop.SERVER, "There are 2.", "None.")
RECIPES = Path(__file__).parent.parent / "examples" / "deployment"


def test_text() -> None:
    assert as_text([BAD, SMALL], colored=False).splitlines() == [
        "fault: upgrade-lost (proxy)", "  It is missing.", "  -> proxy_set_header …;",
        "note: workers (WSGI server)", "  There are 2.", "  -> None."]
    assert as_text([SMALL], colored=False).splitlines()[-1] == "All is well."
    assert as_text([ODD], colored=True).startswith("\x1b[33mwarning: few-threads (WSGI server)\x1b[0m\n")
    assert as_text([], colored=True) == "\x1b[32mAll is well.\x1b[0m"


def test_good(capsys: pytest.CaptureFixture[str]) -> None:
    """With the recipes; http:// stands for ws://."""
    with serve_here(ListenableManager()) as port:
        status = main([
            "doctor", f"http://127.0.0.1:{port}/ws", "--idle", "0.3", "--connections", "1",
            "--proxy-config", str(RECIPES / "nginx.conf"), "--proxy-config", str(RECIPES / "haproxy.cfg"),
            "--gunicorn", "-c", str(RECIPES / "gunicorn.conf.py"), "app:app"])
    captured = capsys.readouterr()
    assert (status, captured.out, captured.err) == (0, "All is well.\n", "staying idle for 0.3 s …\n")


def test_bad(capsys: pytest.CaptureFixture[str]) -> None:
    """The worst comes first."""
    assert main(["doctor", "ws://127.0.0.1:1/", "--json", "--gunicorn", "-w", "2", "--max-requests", "1", "a:b"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["well"] is False
    assert [(one["severity"], one["name"]) for one in found["findings"]] == [
        ("fault", "connection-refused"), ("warning", "max-requests"), ("note", "workers")]


def test_settings_that_gunicorn_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--gunicorn", "--no-such-option"]) == 1
    assert "fault: settings (WSGI server)\n  gunicorn refuses its configuration: " in capsys.readouterr().out
