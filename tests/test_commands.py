"""The command line as a whole: which commands there are, and what ends each of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from wsthread import commands
from wsthread.commands import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command tells what its exit statuses mean."""
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert "Exit status: 0 when" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [
    [], ["nothing"], ["connect"], ["connect", "http://127.0.0.1/"], ["connect", "--header", "x", "ws://a/"],
    ["connect", "--timeout", "0", "ws://a/"], ["connect", "--ca", "/nowhere", "ws://a/"], ["doctor"],
    ["bench", "--connections", "100000", "ws://a/"], ["bench", "--rate", "0", "ws://a/"],
    ["doctor", "--proxy-config", "/nowhere"], ["doctor", "--connections", "5", "--pid", "999999999"],
])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: wsthread" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BrokenPipeError()])
def test_interrupted(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: object) -> int:
        raise error

    monkeypatch.setattr(sys, "stdout", sys.stdout)  # It may be put away.
    monkeypatch.setattr(commands.bench, "run", run)
    assert main(["bench", "ws://a/"]) == 130


def test_as_module() -> None:
    result = subprocess.run([sys.executable, "-m", "wsthread", "--help"], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)
