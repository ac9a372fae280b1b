"""Run the Autobahn test suite against the echo example under gunicorn: ``make conformance``.

The suite exists for Python 2.7 only and gets a virtual environment of its own under build/conformance. Its report for
a browser is build/conformance/report/index.html.

Environment variables:
    CASES: the cases to run, separated by spaces, such as ``1.* 7.5.1``. Default ``*``, all.
    PYTHON2: a Python 2.7, where none is found on PATH or among pyenv's.

The server gets all other environment variables as they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from servers import Server, serve

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
EXAMPLES = ROOT / "examples"
BUILD = ROOT / "build" / "conformance"
PYTHON2_BIN = BUILD / "python2" / "bin"
REPORT = BUILD / "report"
REQUIREMENTS = TESTS / "conformance.txt"
VIRTUALENV = "virtualenv==20.21.1"  # The last that makes environments for Python 2.7.
STALL = 600  # Seconds; the longest case may take 480.

PLANNED = re.compile(r"will run (\d+) test cases")
STARTED = re.compile(r"(?<=Running test case ID )(\d+)\.\S+")
SECTIONS = {
    1: "Framing", 2: "Pings and Pongs", 3: "Reserved bits", 4: "Opcodes", 5: "Fragmentation", 6: "UTF-8",
    7: "Closing", 9: "Limits and performance", 10: "Automatic fragmentation", 12: "Compression, payloads",
    13: "Compression, parameters",
}
GOOD = ["OK", "INFORMATIONAL"]


class Failure(Exception):
    """Why there is no result."""


def main() -> int:
    """Install, run, report; return the exit status."""
    try:
        install()
        shutil.rmtree(REPORT, ignore_errors=True)
        tested = versions()  # Before the run, while the code is the one that the server loads.
        with serve("gthread", "echo:app", "--chdir", str(EXAMPLES)) as server:
            planned = run(server)
        (BUILD / "server.log").write_text(server.log())
        results = read_results()
        print()
        print("\n".join(table(results)))
        print()
        print(tested)
        print(f"Details: {REPORT / 'index.html'}")
        problems = list(find_problems(results, planned)) + [f"the server logged: {line}" for line in server.errors()]
    except Failure as failure:
        problems = [str(failure)]
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


# Installing


def find_python2() -> str:
    """Return a working Python 2.7."""
    wanted = os.environ.get("PYTHON2")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    installed = map(str, pyenv.glob("versions/2.7*/bin/python2.7"))
    candidates = [wanted] if wanted else ["python2.7", "python2", *installed]
    for candidate in candidates:
        try:
            # What is found may be a shim of pyenv's that has nothing behind it.
            answer = subprocess.run(
                [candidate, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
        except OSError:
            continue
        if answer.returncode == 0 and answer.stdout.strip() == "(2, 7)":
            return candidate
    if wanted:
        raise Failure(f"PYTHON2 is {wanted!r}, which is no working Python 2.7")
    raise Failure(
        "the Autobahn test suite needs Python 2.7, and there is none. Install one (apt-get install python2.7, or "
        "pyenv install 2.7.18) or name it: make conformance PYTHON2=/path/to/python2.7")


def install() -> None:
    """Make the environment for Python 2.7 unless it is there, made of the same requirements."""
    stamp = BUILD / "installed.txt"
    if stamp.exists() and stamp.read_bytes() == REQUIREMENTS.read_bytes():
        return
    python2 = find_python2()
    print(f"Installing the Autobahn test suite for {python2} ...", flush=True)
    shutil.rmtree(BUILD, ignore_errors=True)
    tool = BUILD / "virtualenv"
    pip = ["install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", f"{tool}"],
        [f"{tool}/bin/python", "-m", "pip", *pip, VIRTUALENV],
        [f"{tool}/bin/virtualenv", "--quiet", "--python", python2, f"{PYTHON2_BIN.parent}"],
        [f"{PYTHON2_BIN}/python", "-m", "pip", *pip, "--no-deps", "--requirement", f"{REQUIREMENTS}"],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise Failure(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    shutil.copyfile(REQUIREMENTS, stamp)


# Running


def run(server: Server) -> int:
    """Run the suite and return how many cases it set out to run."""
    spec = BUILD / "fuzzingclient.json"
    spec.write_text(json.dumps({
        "outdir": str(REPORT),
        "servers": [{"agent": "wsthread", "url": server.url("/echo", "ws")}],
        "cases": os.environ.get("CASES", "").split() or ["*"],
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }))
    log = BUILD / "wstest.log"
    command = [f"{PYTHON2_BIN}/wstest", "--mode", "fuzzingclient", "--spec", f"{spec}"]
    with log.open("wb") as output:
        wstest = subprocess.Popen(
            command, cwd=BUILD, env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT)
    try:
        planned = follow(wstest, log)
    finally:
        wstest.kill()
        wstest.wait()
    return planned


def follow(wstest: subprocess.Popen[bytes], log: Path) -> int:
    """Show how far the suite is until it ends; return how many cases it set out to run."""
    planned, count = None, 0
    deadline = time.monotonic() + STALL
    with log.open(errors="replace") as lines:
        while True:
            ended = wstest.poll() is not None  # Looked at before the log, so that nothing can be missed.
            for line in lines:
                deadline = time.monotonic() + STALL
                if found := PLANNED.search(line):
                    planned = int(found[1])
                elif found := STARTED.search(line):
                    count += 1
                    if count % 25 == 1:
                        print(f"Case {count} of {planned}: {found[0]}, {SECTIONS.get(int(found[1]), '')}", flush=True)
            if planned == 0:  # The suite would wait forever.
                raise Failure(f"no case matches CASES={os.environ.get('CASES')!r}")
            if ended:
                if wstest.returncode or planned is None:
                    raise Failure(f"wstest ended with {wstest.returncode}:\n{log.read_text(errors='replace')[-2000:]}")
                return planned
            if time.monotonic() > deadline:
                raise Failure(f"wstest has done nothing for {STALL} s; see {log}")
            time.sleep(0.2)


# Reporting


Results = dict[str, dict[str, str]]


def read_results() -> Results:
    """Return what the suite found, by case id, in the order of the cases."""
    index = REPORT / "index.json"
    if not index.exists():
        raise Failure(f"the suite has written no report; see {BUILD / 'wstest.log'}")
    results: Results = json.loads(index.read_text()).get("wsthread", {})
    return dict(sorted(results.items(), key=lambda item: [int(part) for part in item[0].split(".")]))


def find_problems(results: Results, planned: int) -> Iterator[str]:
    """Tell of every case that is not as it should be, and of those that were not run."""
    if len(results) != planned or not results:
        yield f"{len(results)} of {planned} cases were run; see {BUILD / 'wstest.log'}"
    for case_id, result in results.items():
        behavior, close = result["behavior"], result["behaviorClose"]
        if behavior not in GOOD or close not in GOOD:
            yield f"case {case_id}: {behavior}, close: {close}; see {REPORT / result['reportfile']}"


def table(results: Results) -> list[str]:
    """Return the lines of a table by section, in the form that docs/conformance.rst has."""
    kinds = ("behavior", "behaviorClose")
    columns = [
        (kind, value) for kind in kinds
        for value in dict.fromkeys([*GOOD, *sorted(result[kind] for result in results.values())])]
    counts: dict[int, Counter[tuple[str, str]]] = {}
    for case_id, result in results.items():
        section = counts.setdefault(int(case_id.split(".")[0]), Counter())
        section.update((kind, result[kind]) for kind in kinds)
    rows = [["Section", "Cases", *(value if kind == kinds[0] else f"close: {value}" for kind, value in columns)]]
    for number, section in counts.items():
        cases = sum(section[column] for column in columns if column[0] == kinds[0])
        rows.append([f"{number} {SECTIONS.get(number, '')}", str(cases), *(str(section[one]) for one in columns)])
    total: Counter[tuple[str, str]] = sum(counts.values(), Counter())
    rows.append(["All", str(len(results)), *(str(total[one]) for one in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return [rule, lines[0], rule, *lines[1:], rule]


def versions() -> str:
    """Return what the result holds for."""
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", REQUIREMENTS.read_text(), re.MULTILINE))
    used = [f"autobahntestsuite {pinned['autobahntestsuite']}", "Python " + sys.version.split()[0]]
    used += [f"{name} {version(name)}" for name in ("gunicorn", "Werkzeug", "Flask", "wsthread")]
    used[-1] += commit()
    used += [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("WSTHREAD_")]
    return ", ".join(used)


def commit() -> str:
    """Return the last commit that changed the package, in brackets, and whether it was changed since."""
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments, "--", "wsthread"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    if not shutil.which("git"):
        return ""
    last = git("log", "-1", "--format=%h")
    return f" ({last}{' and changes' if git('status', '--porcelain') else ''})" if last else ""


if __name__ == "__main__":
    sys.exit(main())
