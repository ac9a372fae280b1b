"""Builds what is uploaded, and tries each file as those do who install it: make dist.

In dist/ are then the source distribution, a wheel with the C extension for each Python that is here, and the pure wheel
for all others. Their metadata and contents are checked. Then each row of :func:`rows` is installed into an empty
environment, outside of the checkout, where an example of README runs under gunicorn and a client talks to it.

These wheels are for machines like this one: cibuildwheel makes those of a release; see docs/releasing.rst.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import websocket
from pythons import ROOT, install, make_environment, present

DIST = ROOT / "dist"
PATIENCE = 30.0  # Seconds to wait for a server.
MISSING = "the C extension of wsthread is missing"  # The line that tells of it.
#: What is for those who work on the project only.
NOT_IN_SDIST = re.compile(r"\.(?:ci|github)/|\.gitignore$|\.pre-commit-config\.yaml$")
GENERATED = re.compile(r"PKG-INFO$|wsthread\.egg-info/")
IN_WHEEL = {"wsthread/py.typed", "wsthread/static/wsthread/wsthread.js", "wsthread/static/wsthread/wsthread.d.ts"}

#: What README takes for granted around its example for any WSGI application.
WSGI = '''
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from wsthread import SimpleManager, Upgrader

def plain(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"plain"]

def echo(conn):
    for message in conn:
        conn.send(message)

application = DispatcherMiddleware(plain, {"/ws": Upgrader(SimpleManager(echo))})
'''
DJANGO = '''
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import path
from wsthread import SimpleManager
from wsthread.django import websocket

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="none")

def echo(conn):
    for message in conn:
        conn.send(message)

urlpatterns = [path("ws", websocket(SimpleManager(echo)))]
application = get_wsgi_application()
'''
#: There is no Redis: then a manager serves its own clients, and tries again.
REDIS = '''
from wsthread import ListenableManager, RedisBackplane, Upgrader

manager = ListenableManager(name="chat", backplane=RedisBackplane("redis://127.0.0.1:1"))

@manager.on_message
def message(conn, opcode, payload):
    manager.broadcast(payload)

application = Upgrader(manager)
'''
#: Prints whether the extension is in use and where the package is; the log gets what an import may tell: nothing.
PROBE = """
import logging
logging.basicConfig(level=logging.INFO)
import wsthread
from wsthread import speedups
print(speedups.active, wsthread.__file__)
"""


class Sample(NamedTuple):
    """An application, its variable, the path of its WebSocket, and what has to be installed besides."""

    source: str
    variable: str
    path: str
    extras: str


class Row(NamedTuple):
    """Something that is installed and tried.

    Attributes:
        name: of the table.
        python: what it is installed into.
        file: of dist/.
        sample: what runs.
        has_extension: whether the extension is in use then.
        environ: of the installation, besides the usual.
    """

    name: str
    python: Path
    file: Path
    sample: Sample
    has_extension: bool
    environ: dict[str, str] = {}


def blocks(text: str) -> list[str]:
    """Return the literal blocks of a reStructuredText."""
    found, block = [], list[str]()
    for line in [*text.splitlines(), "end"]:
        if line.startswith("    ") or block and not line:
            block.append(line[4:])
        elif block:
            found.append("\n".join(block).strip() + "\n")
            block = []
    return found


def samples() -> dict[str, Sample]:
    """Return what is tried, by name: README's first WebSocket, and more.

    Raises:
        StopIteration: README has none.
    """
    found = blocks((ROOT / "README.rst").read_text())
    flask = next(one for one in found if "Flask(__name__)" in one and re.search(r"^from wsthread", one, re.MULTILINE))
    path = re.search(r'\.(?:mount|route)\("(/[^"]+)"', flask[flask.index("wsthread"):])
    assert path is not None, flask
    return {
        "Flask": Sample(flask, "app", re.sub(r"<\w+>", "Ada", path[1]), "flask"),
        "WSGI": Sample(WSGI, "application", "/ws", ""),
        "Django": Sample(DJANGO, "application", "/ws", "django"),
        "redis": Sample(REDIS, "application", "/", "redis"),
    }


# What is in dist/


def build(
    pythons: dict[str, Path], scratch: Path, directory: Path = DIST,
) -> tuple[Path, Path, dict[str, Path]]:
    """Build everything into a directory, which is emptied before.

    The wheels are built from the source distribution, so it has all that they need.

    Returns:
        The source distribution, the pure wheel, and the wheels with the extension by the names of their Pythons.
    """
    shutil.rmtree(directory, ignore_errors=True)
    environments = {name: make_environment(python, scratch / name) for name, python in pythons.items()}
    first = next(iter(environments.values()))
    install(first, "build")
    _run(first, "-m", "build", "--sdist", "--outdir", directory, ROOT)
    sdist = next(directory.glob("*.tar.gz"))
    pure = _build_wheel(first, sdist, {"WSTHREAD_PURE": "1"})
    return sdist, pure, {name: _build_wheel(python, sdist) for name, python in environments.items()}


def _build_wheel(python: Path, sdist: Path, environ: dict[str, str] | None = None) -> Path:
    before = set(sdist.parent.glob("*.whl"))
    _run(python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", sdist.parent, sdist, environ=environ)
    return next(iter(set(sdist.parent.glob("*.whl")) - before))


def check_sdist(sdist: Path) -> None:
    """Raise AssertionError unless it has what git has, but for what only developers need."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    compare_with_git({name for name in names if not GENERATED.search(name)})


def compare_with_git(names: set[str]) -> None:
    """Raise AssertionError unless all that git has is among these files, but for what only developers need; or more is.

    What git does not have yet may be among them or not.
    """
    if (ROOT / ".git").exists():
        known = _listed_by_git("--cached")
        assert known <= names, f"git has, and it has not: {sorted(known - names)}"
        more = names - known - _listed_by_git("--others", "--exclude-standard")
        assert not more, f"git would ignore: {sorted(more)}"


def _listed_by_git(*options: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", *options], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.splitlines() if not NOT_IN_SDIST.match(name) and (ROOT / name).exists()}


def check_wheel(wheel: Path, name: str | None) -> None:
    """Raise AssertionError unless a wheel is for the Python of that name, or is pure, and has what belongs into it."""
    tag = wheel.stem.split("-", 2)[2]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    extensions = [one for one in names if one.endswith(".so")]
    if name is None:
        assert (tag, extensions) == ("py3-none-any", [])
    else:
        plain = name.replace(".", "").rstrip("t")
        assert tag.startswith(f"cp{plain}-cp{name.replace('.', '')}-"), tag
        assert len(extensions) == 1, "the C extension was not built"
    assert IN_WHEEL <= names
    assert any(one.endswith(".dist-info/licenses/LICENSE") for one in names)
    assert {one.split("/")[0].split("-")[0] for one in names} == {"wsthread"}, "something else would be installed"


def check_metadata(wheel: Path) -> None:
    """Raise AssertionError unless the registry knows the classifiers; it refuses others."""
    from trove_classifiers import classifiers
    with zipfile.ZipFile(wheel) as archive:
        name = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert set(metadata.get_all("Classifier", [])) <= classifiers


# What somebody has who installs it


def rows(python: str, pythons: dict[str, Path], sdist: Path, pure: Path, wheels: dict[str, Path]) -> Iterator[Row]:
    """Yield what is tried: everything on one Python, and on the others their wheels."""
    known = samples()
    flask, here, wheel = known["Flask"], pythons[python], wheels[python]
    yield Row("sdist", here, sdist, flask, True)
    yield Row("sdist, CC=false", here, sdist, flask, False, {"CC": "false"})
    yield Row("sdist, no compiler on PATH", here, sdist, flask, False, {"PATH": ""})
    yield Row("pure wheel", here, pure, flask, False)
    for name, sample in known.items():
        yield Row(f"wheel, {name}", here, wheel, sample, True)
    everything = ",".join(sample.extras for sample in known.values() if sample.extras)
    yield Row("wheel, all extras", here, wheel, flask._replace(extras=everything), True)
    for name, other in pythons.items():
        if name != python:
            yield Row(f"wheel, Python {name}", other, wheels[name], flask, True)


def attempt(row: Row, directory: Path) -> None:
    """Install a row and talk to its sample.

    Raises:
        AssertionError: something is not as it should be.
        subprocess.CalledProcessError: it cannot be installed.
    """
    python = make_environment(row.python, directory / "venv")
    extras = f"[{row.sample.extras}]" if row.sample.extras else ""
    install(python, f"{row.file}{extras}", "gunicorn", environ={**_environ(), **row.environ})
    probe = subprocess.run(
        [python, "-c", PROBE], cwd=directory, env=_environ(), capture_output=True, text=True, timeout=60)
    active, _, file = probe.stdout.strip().partition(" ")
    assert probe.stderr == "", probe.stderr
    assert Path(file).is_relative_to(directory), file
    assert active == str(row.has_extension), f"whether the extension is in use: {active}"
    (directory / "app.py").write_text(row.sample.source)
    (directory / "gunicorn.conf.py").write_text("import logging\nlogging.basicConfig(level=logging.INFO)\n")
    log = directory / "log"
    with served(python, f"app:{row.sample.variable}", log) as port:
        for text in ("one", "two", "three"):  # Three connections of one process.
            client = websocket.create_connection(f"ws://127.0.0.1:{port}{row.sample.path}", timeout=PATIENCE)
            client.send(text)
            answer = client.recv()
            assert text in str(answer), answer
            client.close()
    told = [line for line in log.read_text().splitlines() if MISSING in line]
    assert len(told) == (0 if row.has_extension else 1), told
    assert all(line.startswith("INFO:wsthread:") for line in told), told


@contextmanager
def served(python: Path, app: str, log: Path) -> Iterator[int]:
    """Serve an application of a directory, the way README says; the value is the port."""
    command = [
        str(python.with_name("gunicorn")), "--worker-class", "gthread", "--threads", "2", "--bind", "127.0.0.1:0", app]
    with log.open("wb") as output, subprocess.Popen(
            command, cwd=log.parent, env=_environ(), stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            until = time.monotonic() + PATIENCE
            while (listening := re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", log.read_text())) is None:
                assert process.poll() is None and time.monotonic() < until, "it does not start"
                time.sleep(0.05)
            yield int(listening[1])
        finally:
            process.terminate()


def _environ() -> dict[str, str]:
    """Return the environment without what leads to the checkout or has the package do something else."""
    return {
        name: value for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "VIRTUAL_ENV") and not name.startswith("WSTHREAD_")}


def _run(*command: str | Path, environ: dict[str, str] | None = None) -> None:
    """Run something, and show what it prints only when it fails."""
    done = subprocess.run(
        command, env={**_environ(), **(environ or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=900)
    if done.returncode:
        print(done.stdout)
        done.check_returncode()


def main() -> int:
    """Build, check and try everything, and print a table; return 1 when something is wrong."""
    pythons = present()
    here = next(name for name, python in pythons.items() if python == Path(sys.executable))
    failed = 0
    with tempfile.TemporaryDirectory(prefix="wsthread-dist-") as scratch:
        sdist, pure, wheels = build(pythons, Path(scratch))
        _run(sys.executable, "-m", "twine", "check", "--strict", *sorted(DIST.iterdir()))
        check_sdist(sdist)
        check_metadata(pure)
        for name, wheel in [(None, pure), *wheels.items()]:
            check_wheel(wheel, name)
        print("\n".join(f"dist/{file.name}" for file in sorted(DIST.iterdir())), flush=True)
        for number, row in enumerate(rows(here, pythons, sdist, pure, wheels)):
            directory = Path(scratch, str(number))
            directory.mkdir()
            outcome = "well"
            try:
                attempt(row, directory)
            except (AssertionError, OSError, subprocess.SubprocessError, websocket.WebSocketException) as error:
                failed += 1
                outcome = f"{type(error).__name__}: {error}"
                if (directory / "log").exists():
                    outcome += "\n" + (directory / "log").read_text()
            print(f"{row.name:28}{outcome}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
