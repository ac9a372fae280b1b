"""The programs in README and docs/ are whole: each is written to its file, imported, and its tests are run.

A program is the block behind a paragraph that ends with the name of its file, such as "``app.py``::". A page may have
several versions of a file; each counts from there on.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = re.compile(r"``(\w+\.(?:py|html|js))``:?:\n(?:\n\.\. code-block:: \w+\n)?((?:\n|    .*\n)+)")
PAGES = {
    "README.rst": 1, "docs/tutorial.rst": 5, "docs/testing.rst": 4, "docs/broadcasting.rst": 2,
    "docs/flask-socketio.rst": 2, "docs/gevent-websocket.rst": 3, "docs/channels.rst": 2, "docs/go.rst": 2,
}
OF_SERVERS = {"test_server.py"}  # They take a port.
SETTINGS = "from django.conf import settings; settings.configure(); "


def programs(page: str) -> list[tuple[str, str]]:
    """Return the files of a page, with their names, in its order."""
    text = (ROOT / page).read_text()
    return [(name, textwrap.dedent(code).strip() + "\n") for name, code in PROGRAM.findall(text)]


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_programs_run(page: str, tmp_path: Path) -> None:
    names = []
    for name, code in programs(page):
        (tmp_path / name).write_text(code)
        if name.startswith("test_") and name not in OF_SERVERS:
            run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", ".", name, cwd=tmp_path)
        elif name.endswith(".py") and not name.startswith("test_"):
            run("-c", f"{SETTINGS}import {Path(name).stem}", cwd=tmp_path)
        if name.endswith(".py"):
            names.append(name)
    assert len(names) == PAGES[page], names
