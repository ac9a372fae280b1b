"""The shape of the package: which module may import what, and which file of tests is named after it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from typing import NamedTuple

import pytest
from layers import FILES, FLOORS, MODULES, PACKAGE, PURE, WITHOUT_NAMESAKE, namesake

#: What they may use of wsthread.speedups, which does I/O besides: there C takes the place of what is pure as well.
PURE_SPEEDUPS = {"mask", "mask_in_place", "read_messages", "encode_message"}
#: What touches the world or the clock.
IMPURE = {
    "_thread", "asyncio", "concurrent", "fcntl", "logging", "multiprocessing", "os", "queue", "random", "secrets",
    "select", "selectors", "signal", "socket", "socketserver", "ssl", "subprocess", "sys", "threading", "time",
}
#: What an application may have or not; code that needs it may import it late.
OPTIONAL = {"django", "flask", "gunicorn", "prometheus_client", "pytest", "redis"}
#: The modules on top, which nobody else imports, and what each may need of it.
ON_TOP: dict[str, set[str]] = {
    "flask": {"flask"}, "configuration": set(), "flask_contexts": {"flask"}, "flask_rules": {"flask"},
    "django": {"django"}, "django_handshake": {"django"}, "django_scope": {"django"}, "django_testing": {"django"},
    "prometheus": {"prometheus_client"}, "pytest_plugin": {"pytest"}, "testing": set(),
}


class Import(NamedTuple):
    """One imported module.

    Attributes:
        name: in full, such as ``wsthread.wire.frames`` or ``http``.
        line: where.
        on_top: whether it stands among the first statements of its file, under no condition.
    """

    name: str
    line: int
    on_top: bool

    @property
    def own(self) -> str | None:
        """The name within the package; None for modules of others. The package itself is ``__init__``."""
        package, _, rest = self.name.partition(".")
        return (rest or "__init__") if package == "wsthread" else None


def imported_names(node: ast.AST, within: str) -> Iterator[str]:
    """Yield the modules that a statement of a module within a package imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = within.split(".")
        parents = parents[:len(parents) + 1 - node.level] if node.level else []
        base = ".".join(filter(None, [*parents, node.module]))
        for alias in node.names:  # from . import frames, __version__
            name = f"{base}.{alias.name}"
            yield name if name.removeprefix("wsthread.") in MODULES else base


def imports_of(source: str, within: str = "wsthread") -> list[Import]:
    """Return all imports of a module, wherever they stand; ``within`` is the package that it is in."""
    tree = ast.parse(source)
    top: set[ast.stmt] = set()
    for statement in tree.body:
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not is_docstring and not isinstance(statement, (ast.Import, ast.ImportFrom)):
            break
        top.add(statement)
    return [
        Import(name, getattr(node, "lineno", 0), node in top)
        for node in ast.walk(tree) for name in imported_names(node, within)]


IMPORTS = {
    name: imports_of(path.read_text(), ".".join(["wsthread", *path.relative_to(PACKAGE).parent.parts]))
    for name, path in FILES.items()}
EXAMPLE = '''
"""Docstring."""
import os, wsthread
from . import options, __version__
from .wire import frames
from .wire.frames import Opcode
if TYPE_CHECKING:
    from .wire.protocol import Close
def function():
    import wsthread.wire.messages
from wsthread.wire.deflate import Deflate
from http import HTTPStatus
'''


def test_imports_are_found() -> None:
    """The test itself finds each kind of import."""
    found = {(one.name, one.own, one.on_top) for one in imports_of(EXAMPLE)}
    assert found == {
        ("os", None, True),
        ("wsthread", "__init__", True),
        ("wsthread.options", "options", True),
        ("wsthread.wire.frames", "wire.frames", True),
        ("wsthread.wire.protocol", "wire.protocol", False),
        ("wsthread.wire.messages", "wire.messages", False),
        ("wsthread.wire.deflate", "wire.deflate", False),
        ("http", None, False),
    }
    assert {"exceptions", "wire.frames", "wire.messages", "wire.protocol", "wire.handshake"} <= set(PURE)
    assert any(one.own == "wire.frames" for one in IMPORTS["wire.protocol"])
    assert any(one.own == "exceptions" for one in IMPORTS["wire.protocol"])


@pytest.mark.parametrize("module", PURE)
def test_pure(module: str) -> None:
    """Modules without I/O import what is without I/O, of the standard library and of ours."""
    for one in IMPORTS[module]:
        if one.own is not None:
            assert one.own in PURE or one.own == "speedups", one
        else:
            name = one.name.partition(".")[0]
            assert name in sys.stdlib_module_names and name not in IMPURE, one


@pytest.mark.parametrize("module", PURE)
def test_pure_speedups(module: str) -> None:
    """Of the seam to C they import by name what is pure, and nothing else; so they do not import it whole."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            assert "speedups" not in names
            assert (node.module or "").rpartition(".")[2] != "speedups" or names <= PURE_SPEEDUPS
        elif isinstance(node, ast.Import):
            assert "wsthread.speedups" not in {alias.name for alias in node.names}


def test_what_says_that_it_is_pure_is_tested_for_it() -> None:
    """A paragraph of the docstring begins with that word."""
    docstrings = {module: ast.get_docstring(ast.parse(path.read_text())) or "" for module, path in FILES.items()}
    assert {module for module, text in docstrings.items() if re.search(r"^Pure\b", text, re.MULTILINE)} <= {*PURE}


@pytest.mark.parametrize("module", MODULES)
def test_tests_mirror_modules(module: str) -> None:
    """Whoever changes a module has one file of tests to look into first."""
    assert namesake(module).exists() is (module not in WITHOUT_NAMESAKE)


def test_one_seam_to_c() -> None:
    """Only wsthread.speedups knows of the extension, and it stands on nothing of ours."""
    assert [module for module, path in FILES.items() if "_speedups" in path.read_text()] == ["speedups"]
    assert not [one for one in IMPORTS["speedups"] if one.own is not None]


@pytest.mark.parametrize("module", PURE)
def test_pure_calls(module: str) -> None:
    """They do not get at the world by a builtin either."""
    tree = ast.parse(FILES[module].read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"__import__", "open", "print", "input", "exec", "eval", "breakpoint"}


def test_no_cycle() -> None:
    """Imports among our modules, wherever they stand, are a DAG."""
    graph = {module: {one.own for one in found if one.own is not None} for module, found in IMPORTS.items()}
    order = list(TopologicalSorter(graph).static_order())  # Raises CycleError, which names the cycle.
    assert set(order) == set(MODULES)


def test_each_module_has_a_floor() -> None:
    assert sorted(module for floor in FLOORS for module in floor) == MODULES


@pytest.mark.parametrize(("number", "module"), [
    (number, module) for number, floor in enumerate(FLOORS) for module in floor])
def test_imports_go_down(number: int, module: str) -> None:
    """A module stands on lower floors: not on its own one, and on none above."""
    below = {name for floor in FLOORS[:number] for name in floor}
    assert {one.own for one in IMPORTS[module] if one.own is not None} <= below


@pytest.mark.parametrize("module", MODULES)
def test_no_hidden_import(module: str) -> None:
    """Imports stand on top: none under a condition such as TYPE_CHECKING, in a function or at the bottom."""
    hidden = [one for one in IMPORTS[module] if not one.on_top and one.name.partition(".")[0] not in OPTIONAL]
    assert not hidden


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_the_package(module: str) -> None:
    """Modules import each other, not the package that imports them all."""
    assert not [one for one in IMPORTS[module] if one.own == "__init__"]


@pytest.mark.parametrize("module", MODULES)
def test_needs_no_framework(module: str) -> None:
    """Only the modules on top need more than Werkzeug, and only each other need them."""
    for one in IMPORTS[module]:
        name = one.name.partition(".")[0]
        assert name not in OPTIONAL or not one.on_top or name in ON_TOP.get(module, ()), one
        assert one.own not in ON_TOP or module in ON_TOP, one


#: What only the rooms of the servers know of.
OF_SERVERS = re.compile(r"gunicorn|werkzeug\.socket|gevent|eventlet", re.IGNORECASE)
NAMING = '''
"""gunicorn in a docstring."""
from .servers.gunicorn import Gunicorn as G
class Class:
    """gevent in a docstring."""
    def method(self, eventlet):  # gunicorn in a comment
        return self.gunicorn(environ[f"werkzeug.{name}"], "with gevent and so on", eventlet=werkzeug.socket)
'''


def told_of_servers(source: str) -> list[tuple[int, str]]:
    """Return lines and texts of the names and strings of a module that tell of a server; docstrings do not count."""
    tree = ast.parse(source)
    statements = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # Docstrings among them.
    found = []
    for node in ast.walk(tree):
        texts = [getattr(node, name, None) for name in ("id", "attr", "arg", "name", "module", "value")]
        if isinstance(node, ast.Attribute):
            texts.append(ast.unparse(node))
        found += [
            (getattr(node, "lineno", 0), text) for text in texts
            if isinstance(text, str) and node not in statements and OF_SERVERS.search(text)]
    return sorted(set(found))


def test_what_tells_of_servers_is_found() -> None:
    """The test itself finds each kind of name, and strings."""
    assert told_of_servers(NAMING) == [
        (3, "Gunicorn"), (3, "servers.gunicorn"), (6, "eventlet"), (7, "eventlet"), (7, "gunicorn"),
        (7, "self.gunicorn"), (7, "werkzeug.socket"), (7, "with gevent and so on")]
    assert any(told_of_servers(FILES[module].read_text()) for module in MODULES if module.startswith("servers."))


#: Rooms of servers, and those that tell the operator of one how to set it up.
KNOW_SERVERS = {"servers", "doctor", "commands"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.partition(".")[0] not in KNOW_SERVERS])
def test_only_their_rooms_know_servers(module: str) -> None:
    """Whoever adds a server, or looks for what depends on one, has one place to go to."""
    assert told_of_servers(FILES[module].read_text()) == []


PROBE = """
import sys, threading
import wsthread
print(sorted(thread.name for thread in threading.enumerate()))
print(sorted({"django", "flask", "gunicorn", "redis", "gevent", "prometheus_client"} & set(sys.modules)))
"""


def test_import_does_nothing() -> None:
    """Importing the package starts no thread, needs no framework and warns of nothing."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60)
    assert (result.stdout.splitlines(), result.stderr) == (["['MainThread']", "[]"], "")
