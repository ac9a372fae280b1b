"""The programs that have to be compiled: the load generator, the server in C, and the one in Go."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "bench"
LOAD = BUILD / "load"
C_THREADS = BUILD / "c_threads"
GORILLA = BUILD / "go_gorilla"
GORILLA_SOURCE = HERE / "servers" / "gorilla.go"
SYSTEM_GOPATH = "/usr/share/gocode"  # Where Debian's packages of Go libraries are.


class CannotCompile(Exception):
    """What is missing."""


def compile_c() -> None:
    """Compile the load generator and the server in C, unless they are newer than their sources.

    Raises:
        CannotCompile: there is no C compiler, or it fails.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not shutil.which(compiler[0]):
        raise CannotCompile(
            f"a C compiler is needed, and there is no {compiler[0]!r} (Debian, Ubuntu: apt-get install gcc libc6-dev); "
            "CC names another one")
    BUILD.mkdir(parents=True, exist_ok=True)
    for program in (LOAD, C_THREADS):
        source = HERE / f"{program.name}.c"
        if _is_older(program, source):
            _run([*compiler, "-O2", "-Wall", "-pthread", "-o", str(program), str(source)])


def compile_go() -> None:
    """Compile the server in Go, unless it is newer than its source.

    Raises:
        CannotCompile: there is no Go toolchain, or no gorilla/websocket where it looks.
    """
    if not shutil.which("go"):
        raise CannotCompile("there is no Go toolchain")
    if not _is_older(GORILLA, GORILLA_SOURCE):
        return
    path = os.pathsep.join(filter(None, [os.environ.get("GOPATH"), SYSTEM_GOPATH]))
    # Nothing is downloaded: it takes the library that is installed.
    env = {**os.environ, "GO111MODULE": "off", "GOPATH": path, "GOCACHE": str(BUILD / "go-cache")}
    try:
        _run(["go", "build", "-o", str(GORILLA), str(GORILLA_SOURCE)], env)
    except CannotCompile as error:
        raise CannotCompile(f"gorilla/websocket for Go is not in {path}, or does not compile: {error}") from None


def _is_older(program: Path, source: Path) -> bool:
    return not program.exists() or program.stat().st_mtime < source.stat().st_mtime


def _run(command: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise CannotCompile(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout.strip()}")
