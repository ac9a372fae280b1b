"""The recipes of examples/deployment: as the documentation has them, and as their programs like them.

The tests of nginx, HAProxy and Caddy with them are in test_proxies.
"""

from __future__ import annotations

import ast
import re
import subprocess
import textwrap
from pathlib import Path

import pytest
from proxies import RECIPES, NeedProgram, make_certificate, recipe

from wsthread.doctor.gunicorn import read_settings
from wsthread.doctor.settings import judge_settings

ROOT = Path(__file__).parent.parent
PAGE, TRAPS = ((ROOT / "docs" / name).read_text() for name in ("deployment.rst", "traps.rst"))
#: Strings with a hyphen in doctor's rooms that name no finding.
NO_FINDINGS = {"prior-knowledge", "http-version"}


@pytest.mark.parametrize("path", sorted(RECIPES.iterdir()), ids=lambda path: path.name)
def test_recipes_are_in_the_documentation(path: Path) -> None:
    assert textwrap.indent(path.read_text(), "    ").rstrip() in PAGE


def names_of_findings() -> set[str]:
    """Return the names that doctor's code has: what its calls begin with, and the names in its tables."""
    found = set()
    for path in [*(ROOT / "wsthread" / "doctor").glob("*.py"), ROOT / "wsthread" / "commands" / "doctor.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                if node.func.id in ("fault", "warning", "note"):
                    found |= {one.value for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)}
            if isinstance(node, ast.Tuple) and path.name in ("answers.py", "live.py"):
                found |= {
                    one.value for one in node.elts
                    if isinstance(one, ast.Constant) and re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)+", str(one.value))}
    return {str(name) for name in found - NO_FINDINGS if name not in ("HAProxy", "name")}


def test_each_finding_has_a_section() -> None:
    titles = re.findall(r"^(.+)\n~+$", TRAPS, re.MULTILINE)
    explained = [name for title in titles for name in title.split(", ")]
    assert len(explained) == len(set(explained))
    assert set(explained) >= names_of_findings()
    assert all(f'"{name}"' in "".join(path.read_text() for path in (ROOT / "wsthread").glob("[cd]*/*.py"))
               for name in explained)
    assert TRAPS.count("**Symptom.**") == TRAPS.count("**Cause.**") == TRAPS.count("**Remedy.**") == len(titles)


def test_gunicorn() -> None:
    assert judge_settings(read_settings(["-c", str(RECIPES / "gunicorn.conf.py"), "app:app"])) == []


@pytest.mark.slow
def test_nginx(need_program: NeedProgram, tmp_path: Path) -> None:
    certificate = make_certificate(need_program("openssl"), tmp_path)
    (tmp_path / "site.conf").write_text(recipe("nginx.conf", {
        "/etc/ssl/chat/fullchain.pem": str(certificate), "/etc/ssl/chat/key.pem": str(certificate)}))
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; events {{}} http {{ access_log off; include {tmp_path}/site.conf; }}")
    command = [need_program("nginx"), "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0 and "[warn]" not in result.stderr.replace("listen ... http2", ""), result.stderr


@pytest.mark.slow
def test_haproxy(need_program: NeedProgram, tmp_path: Path) -> None:
    certificate = make_certificate(need_program("openssl"), tmp_path)
    path = tmp_path / "haproxy.cfg"
    path.write_text(recipe("haproxy.cfg", {"/etc/ssl/chat/chat.pem": str(certificate)}))
    command = [need_program("haproxy"), "-c", "-f", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0 and "WARNING" not in result.stderr, result.stderr


@pytest.mark.slow
def test_caddy(need_program: NeedProgram, tmp_path: Path) -> None:
    command = [need_program("caddy"), "validate", "--adapter", "caddyfile", "--config", str(RECIPES / "Caddyfile")]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=30, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert result.returncode == 0 and "not formatted" not in result.stderr, result.stderr


@pytest.mark.slow
def test_systemd(need_program: NeedProgram, tmp_path: Path) -> None:
    program = tmp_path / "gunicorn"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "chat.service"
    unit.write_text(recipe("chat.service", {"/srv/chat/.venv/bin/gunicorn": str(program)}))
    result = subprocess.run(
        [need_program("systemd-analyze"), "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0 and "chat.service" not in result.stderr, result.stderr
