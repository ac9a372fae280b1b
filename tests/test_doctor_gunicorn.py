"""The configuration of gunicorn as gunicorn reads it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gunicorn.config import Chdir

from wsthread.doctor.gunicorn import SettingsError, read_settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, which is where gunicorn would start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Chdir, "default", str(tmp_path))  # It notes the directory when it is imported.
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)
    return tmp_path


@pytest.mark.parametrize(("arguments", "as_module"), [
    (["--threads", "4", "-b", "unix:/run/a", "chat:app"], False),
    (["gunicorn", "--threads", "4", "-b", "unix:/run/a", "chat:app"], False),
    (["/srv/.venv/bin/gunicorn --threads 4 -b unix:/run/a chat:app"], False),
    (["python3 -m gunicorn --threads 4 -b unix:/run/a chat:app"], True)])
def test_command_line(arguments: list[str], as_module: bool) -> None:
    argv = list(sys.argv)
    found = read_settings(arguments, "wss://a/")
    assert (found.worker_class, found.threads, found.workers, found.timeout) == ("gthread", 4, 1, 30)
    assert (found.binds, found.app, found.as_module, found.url) == (["unix:/run/a"], "chat:app", as_module, "wss://a/")
    assert (found.is_tls, found.proxy_protocol, list(found.http_protocols)) == (False, "off", ["h1"])
    assert {"app", "http", "workers"} <= found.shadowed and "127.0.0.1" in found.forwarded_allow_ips
    assert sys.argv == argv


def test_files_and_environment(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration file is run, the application is not imported."""
    (elsewhere / "gunicorn.conf.py").write_text("threads = 2 * 3\nworkers = 5\ntimeout = 7\nproxy_protocol = True\n")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workers 3 --forwarded-allow-ips '10.0.0.1, 10.0.0.2'")
    found = read_settings(["--timeout", "9", "no_such_module:app"])
    assert (found.threads, found.workers, found.timeout) == (6, 3, 9)
    assert found.forwarded_allow_ips == ["10.0.0.1", "10.0.0.2"]
    assert found.proxy_protocol != "off"
    assert Path.cwd() == elsewhere


def test_its_own_directory(elsewhere: Path) -> None:
    (elsewhere / "inner").mkdir()
    assert read_settings(["--chdir", "inner", "a:b"]).app == "a:b"
    assert Path.cwd() == elsewhere


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["-c", "nowhere.py", "a:b"], ["--workers", "many", "a:b"]])
def test_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match="refuses its configuration: .+"):
        read_settings(arguments)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gunicorn", None)
    with pytest.raises(SettingsError, match="not installed"):
        read_settings(["a:b"])
