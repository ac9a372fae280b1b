"""The documentation: its samples run, its links lead somewhere, and its reference is what the package has.

A sample is a block of Python in a page, behind ``::`` or ``.. code-block:: python``; blocks of other languages say
theirs. Each runs by itself, with the names of tests/samples/usual.py, or of the module there that is named after the
page. So its imports are right, its decorators take its functions, and each name that its functions use is there. A
comment ``.. not run: REASON`` in front of a sample leaves it at that it compiles.
"""

from __future__ import annotations

import ast
import builtins
import dis
import os
import re
import runpy
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import pytest
from prometheus_client.core import Metric
from test_public_names import CLASSES, MODULES

import wsthread
from wsthread import ListenableManager, exceptions, testing
from wsthread.bus.backplane import Backplane, Health, Listener
from wsthread.prometheus import Collector

ROOT = Path(__file__).parent.parent
DOCS, REFERENCE, SAMPLES = ROOT / "docs", ROOT / "docs" / "reference", ROOT / "tests" / "samples"
PACKAGE = Path(wsthread.__file__).parent
PAGES = {str(path.relative_to(DOCS).with_suffix("")): path.read_text() for path in sorted(DOCS.rglob("*.rst"))}
#: How a paragraph ends that a whole program follows; tests/test_guides.py runs it.
PROGRAM = re.compile(r"``[\w/.]+\.py``::$")
#: How blocks begin that are for a shell, where nothing says what they are.
COMMANDS = {
    "$", "cd", "curl", "docker", "flask", "git", "gunicorn", "make", "pip", "python", "python3", "uwsgi", "wsthread"}


# Samples


class Sample(NamedTuple):
    """A block of Python in a page.

    Attributes:
        page: its file.
        line: where it begins.
        code: what it says.
        is_run: whether it runs, and is not only compiled.
    """

    page: Path
    line: int
    code: str
    is_run: bool = True

    def __str__(self) -> str:
        return f"{self.page.stem}:{self.line}"


def samples(page: Path) -> Iterator[Sample]:
    """Yield the samples of a page."""
    lines = page.read_text().splitlines()
    is_run = True
    for number, line in enumerate(lines):
        is_run = is_run and not line.startswith(".. not run: ")
        marked = re.match(r" *\.\. code-block:: (\S+)$", line)
        if PROGRAM.search(line):
            is_run = True
        elif marked or line.endswith("::") and not line.lstrip().startswith(".. "):
            indent = len(line) - len(line.lstrip())
            block = []
            for following in lines[number + 1:]:
                if following.strip() and len(following) - len(following.lstrip()) <= indent:
                    break
                block.append(following)
            code = textwrap.dedent("\n".join(block)).strip("\n") + "\n"
            if marked[1] == "python" if marked else code.split()[0] not in COMMANDS:
                yield Sample(page, number + 1, code, is_run)
            is_run = True


ALL = [one for page in [ROOT / "README.rst", *sorted(DOCS.rglob("*.rst"))] for one in samples(page)]
#: Of README, which is no page of the site and has no comments: by how they begin.
NOT_PYTHON = ("manager = ListenableManager(history=History())",)


def codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a compiled block and those of the functions within it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from codes(one)


def globals_of(code: CodeType) -> set[str]:
    """Return the global names that a compiled block and its functions use."""
    return {
        str(one.argval) for each in codes(code) for one in dis.get_instructions(each)
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}


@pytest.mark.parametrize("sample", ALL, ids=str)
def test_samples(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    if sample.page.name == "README.rst" and sample.code.startswith(NOT_PYTHON):
        return
    code = compile(sample.code, f"{sample.page}, the sample of line {sample.line}", "exec")
    if not sample.is_run:
        return
    own = SAMPLES / f"{sample.page.stem}.py"
    names = runpy.run_path(str(own if own.exists() else SAMPLES / "usual.py"))
    names["__name__"] = __name__  # Some frameworks look for the module of their caller.
    monkeypatch.chdir(ROOT)
    with names["opened"], warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of other frameworks' own modules.
        try:
            exec(code, names)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in ("bottle", "falcon", "pyramid"):
                raise
            pytest.skip(f"{error.name} is among what make integration needs")
    missing = {name for name in globals_of(code) if name not in names and not hasattr(builtins, name)}
    assert not missing, "import them in the sample, or see tests/samples"


def test_few_samples_do_not_run() -> None:
    assert {(one.page.stem, one.code.splitlines()[0]) for one in ALL if not one.is_run} == {
        ("channels", "class ChatConsumer(AsyncWebsocketConsumer):"),
        ("flask", "app.test_client_class = FlaskLoginClient"), ("scaling", "from wsthread import Publisher"),
    }
    assert len(ALL) > 50


# Links


def toctrees() -> list[str]:
    """Return the pages of the table of contents."""
    blocks = re.findall(r"\.\. toctree::\n((?:    .*\n|\n)+)", PAGES["index"])
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip() and ":" not in line]


def test_each_page_is_in_the_contents() -> None:
    contents = toctrees()
    assert len(contents) == len(set(contents))
    assert set(contents) == set(PAGES) - {"index"}


@pytest.mark.parametrize("page", PAGES)
def test_pages_have_titles(page: str) -> None:
    assert re.match(r"(?:\.\. .*\n(?:   .*\n)*\n)*(.+)\n=+\n", PAGES[page])


@pytest.mark.parametrize("page", PAGES)
def test_links_to_pages(page: str) -> None:
    for link in re.findall(r":doc:`(?:[^`]*<)?([^`>]+)>?`", PAGES[page]):
        target = link[1:] if link.startswith("/") else os.path.normpath(Path(page).parent / link)
        assert target in PAGES, link
    assert not re.findall(r"``docs/[\w/-]+\.rst``", PAGES[page]) or page == "benchmarks", "make it a link: :doc:`page`"


@pytest.mark.parametrize("page", [*PAGES, "README"])
def test_files_that_are_named(page: str) -> None:
    """Files and directories of the project are there; a star stands for any name."""
    text = PAGES.get(page) or (ROOT / "README.rst").read_text()
    for name in re.findall(r"``((?:\.ci|\.github|benchmarks|docs|examples|tests|wsthread)/[^`\s]+)``", text):
        assert list(ROOT.glob(name.rstrip("/"))) or list(PACKAGE.glob(f"static/{name}")), name


# The reference


def documented() -> set[str]:
    """Return the names that the reference documents by their docstrings."""
    texts = [text for page, text in PAGES.items() if page.startswith("reference/")]
    return {
        name for text in texts
        for name in re.findall(r"^\.\. auto(?:class|exception|function|data):: (\S+)$", text, re.MULTILINE)}


def test_each_name_is_in_the_reference() -> None:
    exported = {f"wsthread.{name}" for name in wsthread.__all__}
    exported |= {f"{module.__name__}.{name}" for module, names in MODULES.items() for name in names}
    assert exported <= documented()
    for name in documented():
        module, _, own = name.rpartition(".")
        assert hasattr(import_module(module), own)


#: What has no docstring of its own because its class tells of it.
ATTRIBUTES = re.compile(r"^ {4,8}(\w+):", re.MULTILINE)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_each_member_is_documented(kind: type) -> None:
    """By a docstring of its own, or under the Attributes or Args of its class."""
    told = {name for base in kind.__mro__ for name in ATTRIBUTES.findall(base.__doc__ or "")}
    if issubclass(kind, wsthread.Manager):
        told |= {name for name in CLASSES[kind][0] if name.startswith("on_")}  # They are options as well.
    if issubclass(kind, int):
        told |= set(CLASSES[kind][0])  # The members of an enumeration.
    names, besides = CLASSES[kind]
    silent = {
        name for name in names | besides
        if name not in told and name not in ("name", "value")
        and not any(getattr(vars(base).get(name), "__doc__", None) for base in kind.__mro__)}
    assert not silent


# Log lines


class Line(NamedTuple):
    """A line of the log, with its level."""

    level: str
    text: str


def lines_of_the_page() -> list[Line]:
    rows = re.findall(r"   \* - ([A-Z]+)\n     - ``(.+)``\n", PAGES["reference/logs"])
    return [Line(*row) for row in rows]


def calls() -> Iterator[Line]:
    """Yield the formats of all lines that the package tells, and those of what the peer is blamed for."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("tell", "tell_aside") and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                level = node.args[0]
                assert isinstance(level, ast.Attribute), ast.unparse(node)
                yield Line(level.attr, str(node.args[1].value))
            elif name == "_complain":
                text = node.args[0]
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                yield Line("WARNING", "%s: " + "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "%s" for part in parts))


COMPLAINT = Line("WARNING", "%s: %s")  # Of each connection that is to blame, and of a dump.


def pattern_of(line: Line) -> re.Pattern[str]:
    """Return what a line of the page looks like: each value is a word in capital letters."""
    texts = re.split(r"%(?:\.?\d*[sdrg]|\.1f)", line.text.replace("\n", " "))
    return re.compile("[A-Z]+".join(map(re.escape, texts)))


def test_log_lines() -> None:
    told, lines = lines_of_the_page(), set(calls())
    assert len(lines) > 35
    for line in lines:
        assert [one for one in told if one.level == line.level and pattern_of(line).fullmatch(one.text)], line
    for one in told:
        assert [
            line for line in lines if one.level == line.level and pattern_of(line).fullmatch(one.text)], f"stale: {one}"


def test_all_lines_are_told_by_these_functions() -> None:
    """Nobody else writes to the logger."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert path.stem in ("logs", "django_scope") or "getLogger" not in text, path  # The latter has django.request.
        assert not re.search(r"import .*\blogger\b|logs\.logger", text), path


# Metrics


class Still(Backplane):
    """A backplane that does nothing and is well."""

    def start(self, name: str, listener: Listener, history: int = 0) -> None:
        """Begin."""

    def publish(self, kind: str, header: dict[str, Any], payload: bytes = b"") -> int:
        """Forget it."""
        return 1

    def health(self) -> Health:
        """Say that all is well."""
        return Health(True, 1.0, lag=0.1, peers=2)

    def close(self, timeout: float) -> None:
        """End."""

    def reset_after_fork(self) -> None:
        """Begin anew."""


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Iterator[ListenableManager]:
    """A manager all of whose numbers are there."""
    manager = ListenableManager(name=request.node.name, backplane=Still(), history=wsthread.History())
    upgrader = wsthread.Upgrader(manager)
    testing.connect(upgrader).close()
    with testing.connect(upgrader):
        with pytest.raises(testing.Refused):
            testing.connect(upgrader, headers={"Origin": "https://other.example"})
        yield manager


def rows(page: str, heading: str) -> list[str]:
    """Return the first cells of the table behind a heading, without what is behind their literals."""
    text = re.search(rf"\n{re.escape(heading)}\n-+\n(.+?)(?=\n[^\n]+\n---|\Z)", PAGES[page], re.DOTALL)
    assert text is not None
    return re.findall(r"^   \* - ``([^`]+)``", text[1], re.MULTILINE)


def test_stats(counted: ListenableManager) -> None:
    keys = set()
    for key, value in counted.stats().items():
        if key in ("connections", "history", "backplane"):
            keys |= {f"{key}.{name}" for name in value}
        else:
            keys.add(key)
    assert set(rows("reference/metrics", "stats()")) == keys | {"history", "backplane"}


def test_prometheus(counted: ListenableManager) -> None:
    metrics: list[Metric] = list(Collector(counted).collect())
    text = PAGES["reference/metrics"].partition("\nPrometheus\n")[2]
    found = {
        tuple(row) for row in re.findall(
            r"   \* - ``(\w+)``\n     - (\w+)\n     -(?: ``(\w+)``)?\n     - ``[\w.]+``", text)}
    assert found == {
        (one.name, one.type, *({label for sample in one.samples for label in sample.labels} or {""}))
        for one in metrics}


# The rest of the reference


def test_environment_variables() -> None:
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    read = set(re.findall(r"os\.environ(?:\.get\(|\[)\"(\w+)\"|\"(\w+)\" (?:not )?in os\.environ", code))
    names = {one or other for one, other in read}
    assert names and set(rows("reference/configuration", "Environment variables")) == names | {"GUNICORN_CMD_ARGS"}
    keys = set(re.findall(r"_KEY = \"(wsthread\.\w+)\"", code))
    assert set(rows("reference/configuration", "The environ of a handshake")) == keys - {"wsthread.socket"}


def test_page_of_the_commands() -> None:
    module = runpy.run_path(str(DOCS / "commands.py"))
    assert PAGES["reference/commands"] == module["page"](), "reference/commands.rst is stale: run make docs-options"
    for name, command in module["COMMANDS"].items():
        listed = subprocess.run(
            [sys.executable, "-m", "wsthread", name, "--help"], capture_output=True, text=True, check=True).stdout
        for option in set(re.findall(r"^  (?:-\w [^,]*, )?(--[a-z-]+)", listed, re.MULTILINE)) - {"--help"}:
            assert re.search(rf"``{option}[ `]", module["section"](name, command)), option


def sent_codes() -> set[int]:
    """Return the close codes that the package puts into a Close."""
    codes = {
        error.code for error in vars(exceptions).values()
        if isinstance(error, type) and issubclass(error, wsthread.ProtocolError)}
    for path in PACKAGE.rglob("*.py"):
        if path.stem in ("connect", "opened", "visit"):
            continue
        codes |= {
            int(getattr(wsthread.CloseCode, name))
            for name in re.findall(r"[cC]lose\((?:\s*)CloseCode\.(\w+)", path.read_text())}
    return codes


def test_close_codes() -> None:
    text = PAGES["reference/close-codes"]
    sent, never = (
        set(map(int, re.findall(r"   \* - (\d{4})\n", part))) for part in text.split("What is never sent"))
    assert never == {1005, 1006, 1015}
    assert sent_codes() - never | {1001, 1012} == sent
    source = (PACKAGE / "static" / "wsthread" / "wsthread.js").read_text()
    comes_back = re.search(r"return \[([\d, ]+)\]\.includes", source)
    assert comes_back is not None
    told = re.search(r"after ([^.]+?) only", text)
    assert told is not None
    first, last = map(int, re.findall(r"(\d+) to (\d+)", told[1])[0])
    single = set(map(int, re.findall(r"\d{4}", told[1].partition(f"{first} to")[0])))
    assert set(map(int, comes_back[1].split(","))) == single | set(range(first, last + 1))


def test_refusals() -> None:
    table = re.findall(r"   \* - (\d{3})\n     - ``([\w-]+)``\n", PAGES["reference/refusals"])
    causes = {cause for _, cause in table}
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert causes >= set(re.findall(r"cause=\"([\w-]+)\"", code))
    by_status = re.search(r"_CAUSES = (\{.+?\})\n", code)
    assert by_status is not None
    assert set(table) >= {(str(status), cause) for status, cause in ast.literal_eval(by_status[1]).items()}


def test_browser_module() -> None:
    text = (PACKAGE / "static" / "wsthread" / "wsthread.d.ts").read_text()
    names = set(re.findall(r"^  (?:readonly |static readonly )?(\w+)\??[:(]", text, re.MULTILINE)) - {"constructor"}
    page = PAGES["reference/browser"]
    described = set(re.findall(r"``(\w+)(?:\([^`]*\))?``", page))
    assert len(names) > 25
    assert {name for name in names if not name.startswith("on") and name != "addEventListener"} <= described | {"id"}


# The site


@pytest.mark.slow
def test_site(tmp_path: Path) -> None:
    """It is built without a warning, and has each name of the reference."""
    inventory = pytest.importorskip("sphinx.util.inventory", reason="sphinx is among what make docs needs")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", str(DOCS), str(tmp_path)], check=True)
    found = inventory.InventoryFile.loads((tmp_path / "objects.inv").read_bytes(), uri="")
    names = {str(name) for kind in found.data if kind.startswith("py:") for name in found.data[kind]}
    for kind, (members, _) in CLASSES.items():
        bases = [
            f"{module}.{base.__name__}" for base in kind.__mro__ for module in ("wsthread", base.__module__)]
        assert bases[0] in names or bases[1] in names
        # The fields of a dataclass are arguments.
        members = members - {field.name for field in fields(kind)} if is_dataclass(kind) else members
        assert {one for one in members if not any(f"{base}.{one}" in names for base in bases)} == set(), kind
