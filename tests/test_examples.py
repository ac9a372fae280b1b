"""What all examples have in common: a command in their first lines, a place in the documentation, and few lines."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from example_apps import EXAMPLES

ROOT = EXAMPLES.parent
# Those of `make run`.
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/app.py"))


def test_all_are_there() -> None:
    assert NAMES == ["chat", "dashboard", "jobs", "terminal", "tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_command(name: str, need_program: Callable[[str], str]) -> None:
    make = need_program("make")
    arguments = [] if name == "chat" else [f"EXAMPLE={name}"]
    plan = subprocess.run(
        [make, "--dry-run", "run", *arguments, "WORKERS=3"], cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True,
    ).stdout
    assert f"--chdir examples/{name} app:app" in plan and "--bind 127.0.0.1:8000 " in plan and "--workers 3 " in plan
    configuration = plan.partition("--config ")[2].split()[0]
    assert configuration == f"examples/{'terminal' if name == 'terminal' else 'chat'}/gunicorn.conf.py"
    assert (ROOT / configuration).exists()
    command = " ".join(["make run", *arguments])
    assert f"``{command}``" in (EXAMPLES / name / "app.py").read_text().splitlines()[0]
    assert f"    {command}\n" in (ROOT / "docs" / "examples.rst").read_text()


@pytest.mark.parametrize("path", [
    path for name in NAMES if name != "chat" for path in (
        EXAMPLES / name / "app.py", EXAMPLES / name / "templates" / "index.html")],
    ids=lambda path: f"{path.relative_to(EXAMPLES)}")
def test_it_is_short_and_needs_no_network(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 120
    assert "https://" not in text and "innerHTML" not in text
    assert max(map(len, text.splitlines())) <= 130
