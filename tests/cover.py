"""Measure how much of the package its tests cover: make cover.

Those tests run that are named after a module, and a few more; not those that talk to servers in processes of their own,
for that covers nothing here. They run without the C extension. Those of what it replaces and of the pure modules run
with it too, and what either run covers counts.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import coverage
from layers import FILES, MODULES, PURE, TESTS, namesake

#: Percent of lines and branches of all modules together. Those of PURE are covered wholly.
LEAST = 96
WITHOUT_C = {*map(namesake, MODULES), TESTS / "test_fanout.py"} - {TESTS / "test_servers.py"}
#: Tests of pure modules that are named after what they are about.
PURE_TOPICS = {TESTS / f"test_{name}.py" for name in ("kept_window", "subprotocols", "compression", "json")}
WITH_C = {*map(namesake, PURE), *PURE_TOPICS, namesake("speedups")}


def run_tests(files: set[Path], speedups: str) -> int:
    """Run tests with a value of WSTHREAD_SPEEDUPS; return the exit status."""
    return subprocess.run(
        [sys.executable, "-m", "coverage", "run", "--append", "-m", "pytest", "--quiet", "-m", "not slow",
         *sorted(str(file) for file in files if file.exists())],
        env={**os.environ, "WSTHREAD_SPEEDUPS": speedups}).returncode


def main() -> int:
    """Run the tests, show the coverage of each module, and return 1 when a test fails or it is too little."""
    measured = coverage.Coverage()
    measured.erase()
    if any([run_tests(WITHOUT_C, "0"), run_tests(WITH_C, "1")]):
        return 1
    measured.load()
    total = measured.report(skip_covered=False)
    pure = measured.report([str(FILES[module]) for module in PURE], file=io.StringIO())
    print(f"All modules: {total:.1f} %, at least {LEAST} %. Pure modules: {pure:.1f} %, at least 100 %.")
    return 0 if total >= LEAST and pure == 100 else 1


if __name__ == "__main__":
    sys.exit(main())
