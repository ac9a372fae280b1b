"""Runs the tests of the servers on old and new versions of them, of Flask and of Django, and prints a table.

``make matrix`` runs all of :data:`ROWS`, ``make matrix VERSIONS=oldest`` the first; the newest of all are what
``make test`` and ``make integration`` run on. Each row gets an environment of its own below build/matrix, which is made
anew only when its requirements change.

The tests are the same for all versions. What a version cannot do is in :data:`CANNOT`: the tests for it are left
out there, and the table says so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import venv
import xml.etree.ElementTree
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "matrix"
TESTS = [
    "tests/test_servers.py", "tests/test_flask_servers.py", "tests/test_interop.py", "tests/test_deploy.py",
    "tests/test_flask.py", "tests/test_flask_contexts.py", "tests/test_flask_apps.py", "tests/test_testing.py",
    "tests/test_pytest_plugin.py", "tests/test_upgrader.py",
    "tests/test_flask_identity.py", "tests/test_flask_errors.py", "tests/test_configuration.py",
    "tests/test_flask_rules.py", "tests/test_flask_clients.py", "tests/test_attended_servers.py",
    "tests/test_django.py", "tests/test_django_handshake.py", "tests/test_django_scope.py",
    "tests/test_django_testing.py", "tests/test_django_servers.py", "tests/test_wsgi_servers.py",
    "tests/test_tls_servers.py",
]
TOOLS = [
    "Flask-HTTPAuth>=4.8", "Flask-JWT-Extended>=4.6", "Flask-Login>=0.6.3", "Flask-Principal>=0.4",
    "Flask-SQLAlchemy>=3.1", "pytest>=8", "pytest-timeout>=2.3", "redis>=5", "trustme>=1.1",
    "websocket-client>=1.8", "websockets>=13",
]
NAMES = ("gunicorn", "Werkzeug", "Flask", "Django", "waitress", "cheroot", "pyuwsgi")
OLD = ("2.0.*", "9.0.*", "2.0.23")  # waitress, cheroot, uWSGI
ROW_TIMEOUT = 900  # Seconds.


class Row(NamedTuple):
    """Versions that are tested together."""

    gunicorn: str
    werkzeug: str
    flask: str
    django: str
    waitress: str = ">=3"
    cheroot: str = ">=11"
    uwsgi: str = ">=2.0.30"

    @property
    def directory(self) -> Path:
        python = "{}.{}".format(*sys.version_info)
        return BUILD / "-".join([python, *(version.replace(".*", "").lstrip(">=") for version in self)])

    def requirements(self) -> list[str]:
        lines = [
            f"{name}{'' if version.startswith('>') else '=='}{version}"
            for name, version in zip(NAMES, self)]
        if self.gunicorn.startswith("20."):
            lines.append("setuptools<81")  # gunicorn 20 imports pkg_resources, which is part of it until then.
        return [*lines, *TOOLS]


# Versions as people have them together, the newest gunicorn with each Werkzeug, and the newest of all last. A gunicorn
# is a row of its own because each of them treats a connection after the response in its own way.
ROWS = [
    Row("20.1.*", "2.3.*", "2.3.*", "4.2.*", *OLD),
    Row("21.2.*", "2.3.*", "2.3.*", "4.2.*"),
    Row("22.0.*", "3.0.*", "3.0.*", "5.0.*"),
    Row("23.0.*", "3.0.*", "3.0.*", "5.1.*"),
    Row("24.1.*", "3.1.*", "3.1.*", "5.1.*"),
    Row("25.*", "3.1.*", "3.1.*", "5.2.*"),
    Row("26.*", "3.1.*", "3.1.*", "5.2.*"),
    Row("27.*", "2.3.*", "2.3.*", "5.0.*"),
    Row("27.*", "3.0.*", "3.0.*", "4.2.*"),
    Row("20.1.*", ">=3.1", ">=3.1", ">=5.2"),
    Row(">=27", ">=3.1", ">=3.1", ">=5.2"),
]

# What has no versions here, so that it would tell nothing new: clients in Node.js and in Chromium, the standard
# library's server, nginx.
UNVERSIONED = ["test_node", "test_chromium", "wsgiref", "bottle", "nginx"]

# What is left out, as an expression of pytest's -k, and why.
_PIPELINING = {
    "test_upgrade_behind_pipelined_requests":
        "gthread forgets requests that it has read together with another one, plain HTTP as well",
}
#: What gunicorn versions, by how their names begin, cannot do.
CANNOT = {f"{major}.": _PIPELINING for major in range(20, 27)}


def prepare(row: Row) -> Path:
    """Return the Python of a row's environment; make it unless it is there with the same requirements."""
    python = row.directory / "bin" / "python"
    stamp = row.directory / "requirements.txt"
    wanted = "\n".join(row.requirements()) + "\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(row.directory, clear=True, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *row.requirements(),
             "--editable", ROOT], check=True, timeout=ROW_TIMEOUT)
        stamp.write_text(wanted)
    return python


def versions(python: Path) -> list[str]:
    """Return what is really installed."""
    code = f"from importlib.metadata import version as v; print(*map(v, {NAMES}))"
    found = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout
    return found.split()


def run(row: Row, options: list[str]) -> tuple[bool, list[str]]:
    """Run the tests of a row; return whether all was well, and its line of the table."""
    python = prepare(row)
    installed = versions(python)
    print(", ".join(map(" ".join, zip(NAMES, installed))), flush=True)
    cannot = next((tests for version, tests in CANNOT.items() if installed[0].startswith(version)), {})
    report, output = row.directory / "report.xml", row.directory / "output.txt"
    report.unlink(missing_ok=True)
    begun = time.monotonic()
    with output.open("w") as log:
        done = subprocess.run(
            [python, "-m", "pytest", "-q", *TESTS, f"--junitxml={report}",
             "-k", " and ".join(f"not {name}" for name in [*UNVERSIONED, *cannot]), *options],
            cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=ROW_TIMEOUT)
    seconds = time.monotonic() - begun
    if done.returncode:
        print("".join(line for line in output.open() if line.startswith(("FAILED", "ERROR", "E   "))), end="")
        print(f"all of it is in {output.relative_to(ROOT)}", flush=True)
    counts = ["?"] * 3
    if report.exists():
        suite = next(xml.etree.ElementTree.parse(report).getroot().iter("testsuite"))
        total, failed, errors, skipped = (
            int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped"))
        counts = [str(total - failed - errors - skipped), str(failed + errors), str(skipped)]
    return done.returncode == 0, [*installed, *counts, str(len(cannot)), f"{seconds:.0f}"]


def main() -> int:
    """Run the rows and print the table; return 1 when a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", choices=["all", "oldest"], help="all of them, or the oldest")
    parser.add_argument("options", nargs="*", help="options for pytest, behind --")
    arguments = parser.parse_args()
    rows = ROWS if arguments.rows == "all" else ROWS[:1]
    results = [run(row, arguments.options) for row in rows]
    table = [[*NAMES, "passed", "failed", "skipped", "left out", "seconds"]]
    table += [line for _, line in results]
    widths = [max(map(len, column)) for column in zip(*table)]
    print(f"\nPython {sys.version.split()[0]}")
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    for version, tests in CANNOT.items():
        if any(line[0].startswith(version) for _, line in results):
            print("\n".join(f"gunicorn {version}x is left out of {name}: {why}" for name, why in tests.items()))
    return 0 if all(well for well, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
