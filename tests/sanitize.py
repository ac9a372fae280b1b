"""Build the extension with sanitizers and run with each the tests that use it: ``make sanitize``.

================  ====================================================================================
address           AddressSanitizer and UndefinedBehaviorSanitizer: reads and writes out of bounds, use
                  of freed memory, overflows. Memory comes from malloc(), so that it is looked at.
thread            ThreadSanitizer: two threads at the same memory without a lock. It sees the extension,
                  not Python, so what Python does under the GIL is no finding.
================  ====================================================================================

Each is a copy of the package below build/sanitize, with an extension of its own. Leaks are not looked for: Python
itself leaves memory behind at its end. Arguments are those of pytest, in place of the tests here.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from layers import PACKAGE, TESTS

BUILD = PACKAGE.parent / "build" / "sanitize"
CALLS = 5000  # At random, of tests/calls.py.
TESTED = (
    "speedups", "frames", "messages", "differential", "transport", "writing", "sending", "receiving", "connection",
    "fanout", "link", "manager",
)
#: For each: compiler flags, libraries to load before all others, and the environment.
KINDS: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "address": (
        "-fsanitize=address,undefined -fno-sanitize-recover=undefined", ["asan", "ubsan"],
        {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1",
         "PYTHONMALLOC": "malloc"}),
    "thread": ("-fsanitize=thread", ["tsan"], {"TSAN_OPTIONS": "halt_on_error=1:exitcode=66:report_signal_unsafe=0"}),
}
#: Tests that do not make sense there, and why.
LEFT_OUT = {
    "test_few_file_descriptors": "a sanitizer has some of its own",
    "test_tiny_broadcasts_to_peers_that_do_not_read": "a sanitizer takes memory of its own",
}


def build(kind: str) -> Path:
    """Return where the package is, with an extension that was built with a sanitizer."""
    directory = BUILD / kind
    shutil.rmtree(directory, ignore_errors=True)
    package = directory / "wsthread"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    compiler = os.environ.get("CC", "gcc").split()
    suffix, include = sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_path("include")
    subprocess.run(
        [*compiler, "-shared", "-fPIC", "-g", "-O1", "-fno-omit-frame-pointer", *KINDS[kind][0].split(),
         f"-I{include}", str(package / "_speedups.c"), "-o", str(package / f"_speedups{suffix}")], check=True)
    return directory


def library(name: str) -> str:
    """Return the file of a sanitizer's library."""
    compiler = os.environ.get("CC", "gcc").split()
    found = subprocess.run(
        [*compiler, f"-print-file-name=lib{name}.so"], check=True, capture_output=True, text=True).stdout.strip()
    return os.path.realpath(found)


def run(kind: str, arguments: list[str]) -> bool:
    """Run the tests with one sanitizer; return whether all passed."""
    directory = build(kind)
    _, libraries, options = KINDS[kind]
    environment = {
        **os.environ, **options, "WSTHREAD_SPEEDUPS": "1", "LD_PRELOAD": " ".join(map(library, libraries)),
        "PYTHONPATH": os.pathsep.join([str(directory), str(TESTS)]), "PYTHONDONTWRITEBYTECODE": "1"}
    # ThreadSanitizer wants memory where it expects it, which random addresses may take.
    prefix = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
    python = [*prefix, sys.executable]
    where = subprocess.run(
        [*python, "-c", "import wsthread._speedups as c; print(c.__file__)"], env=environment, cwd=directory,
        capture_output=True, text=True, check=True).stdout.strip()
    assert Path(where).is_relative_to(directory), where
    chosen = arguments or [
        "-m", "not slow", "-k", " and ".join(f"not {name}" for name in LEFT_OUT),
        *(str(TESTS / f"test_{name}.py") for name in TESTED)]
    commands = [
        [*python, str(TESTS / "calls.py"), str(CALLS)],
        [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=600", "-W", "ignore::ResourceWarning",
         *chosen]]
    results = [subprocess.run(command, env=environment, cwd=PACKAGE.parent).returncode for command in commands]
    print(f"{kind}: {'no finding' if not any(results) else f'failed, {results}'}", flush=True)
    return not any(results)


def main() -> int:
    """Run the tests with each sanitizer; return the exit status."""
    if shutil.which(os.environ.get("CC", "gcc").split()[0]) is None:
        print("make sanitize needs gcc with its sanitizers (Debian: apt-get install gcc libc6-dev).", file=sys.stderr)
        return 1
    return 0 if all([run(kind, sys.argv[1:]) for kind in KINDS]) else 1


if __name__ == "__main__":
    sys.exit(main())
