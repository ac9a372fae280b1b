"""Systems that are no Unix get one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import wsthread

ROOT = Path(wsthread.__file__).parent.parent
#: Makes a Python that lacks modules out of this one, and imports a module.
PROBE = """
import sys
sys.platform = {platform!r}
sys.modules.update(dict.fromkeys({missing!r}))
import {module}
"""


@pytest.mark.parametrize("module", ["wsthread", "wsthread.client", "wsthread.testing", "wsthread.wire.frames"])
@pytest.mark.parametrize(("platform", "missing"), [
    ("win32", ["resource", "fcntl", "pwd", "grp", "termios", "posix"]),
    ("emscripten", ["resource", "fcntl", "termios"]),
    ("wasi", ["resource", "socket", "_socket", "fcntl"]),
])
def test_one_sentence(platform: str, missing: list[str], module: str) -> None:
    """It is an ImportError that names no module of ours and is the last thing that happens."""
    result = run(platform, missing, module)
    assert result.returncode == 1
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith("ImportError: wsthread needs Linux, macOS or another Unix, ")
    assert f"{platform!r} has no resource" in last and last.endswith("run the application in WSL or in a container")
    assert "During handling" not in result.stderr


def test_this_system() -> None:
    assert run(sys.platform, [], "wsthread").returncode == 0


def run(platform: str, missing: list[str], module: str) -> subprocess.CompletedProcess[str]:
    """Import a module on such a system."""
    code = PROBE.format(platform=platform, missing=missing, module=module)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
