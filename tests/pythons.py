"""Runs the fast tests on each Python that is on this machine, and prints a table: make test-all.

Those are found that ``PATH`` and pyenv have, from 3.10 on, free-threaded ones too. Each gets an environment of its own
below build/test-all, and they have their turn one after another. ``make test-all ARGS=-kflask`` passes options on to
pytest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "test-all"
OLDEST = (3, 10)
#: Prints what :func:`present` calls an interpreter. It needs ensurepip, which some distributions leave out, for venv.
PROBE = """
import ensurepip, sys, sysconfig
print("%d.%d%s" % (*sys.version_info[:2], "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""))
"""


def present() -> dict[str, Path]:
    """Return the interpreters by names such as ``3.14`` and ``3.14t``: this one, and one of each that is found."""
    found: dict[str, Path] = {}
    for python in _candidates():
        try:
            probe = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, timeout=60)
        except OSError:
            continue
        name = probe.stdout.strip()
        if probe.returncode == 0 and _version(name) >= OLDEST:
            found.setdefault(name, python)
    return dict(sorted(found.items(), key=lambda item: (_version(item[0]), item[0])))


def _candidates() -> Iterator[Path]:
    yield Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    directories = [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part]
    for directory in [*directories, *sorted(pyenv.glob("versions/*/bin"), reverse=True)]:
        yield from (path for path in sorted(directory.glob("python3*")) if re.fullmatch(r"python3\.\d+t?", path.name))


def _version(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.rstrip("t").split(".")))


def make_environment(python: Path, directory: Path) -> Path:
    """Make an environment of an interpreter, unless there is one, and return its Python."""
    made = directory / "bin" / "python"
    if not made.exists():
        subprocess.run([python, "-m", "venv", directory], check=True, timeout=600)
    return made


def install(python: Path, *arguments: str | Path, environ: dict[str, str] | None = None) -> None:
    """Run ``pip install`` in an environment."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=900, env=environ)


def main() -> int:
    """Run the tests and print the table; return 1 when one of them failed."""
    results = []
    for name, interpreter in present().items():
        print(f"Python {name}: {interpreter}", flush=True)
        begun = time.monotonic()
        try:
            python = make_environment(interpreter, BUILD / name)
            install(python, "--editable", f"{ROOT}[test]")
            done = subprocess.run([python, "-m", "pytest", "-q", "-m", "not slow", *sys.argv[1:]], cwd=ROOT)
            outcome = "passed" if done.returncode == 0 else f"pytest ended with {done.returncode}"
        except subprocess.CalledProcessError as error:
            outcome = f"could not be set up: {error}"
        results.append((name, outcome, time.monotonic() - begun))
    print()
    for name, outcome, seconds in results:
        print(f"{name:6}{seconds:6.0f} s  {outcome}")
    return 0 if all(outcome == "passed" for _, outcome, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
