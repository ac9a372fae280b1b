"""What is published: the metadata, the files of each distribution, and the examples that make dist tries."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import distributions
import pytest
from layers import PACKAGE
from pythons import OLDEST, ROOT, present

import wsthread

CONFIGURATION = configparser.ConfigParser()
CONFIGURATION.read(ROOT / "setup.cfg")
METADATA = importlib.metadata.metadata("wsthread")
CLASSIFIERS = CONFIGURATION["metadata"]["classifiers"].split("\n")[1:]
VERSION = re.compile(r"Programming Language :: Python :: 3\.(\d+)$")


def test_newest_version_of_the_changelog() -> None:
    """It is the package's, and dated."""
    heading = (ROOT / "CHANGELOG.rst").read_text().splitlines()[3]
    assert re.fullmatch(re.escape(wsthread.__version__) + r" \((\d{4}-\d\d-\d\d|unreleased)\)", heading)


def test_metadata() -> None:
    """What an installation says of itself."""
    links = dict(one.split(", ") for one in METADATA.get_all("Project-URL") or [])
    assert METADATA["Name"] == "wsthread"
    assert {"Documentation", "Changelog", "Issues"} <= links.keys()
    assert {one.removeprefix("https://").split("/")[0] for one in links.values()} == {"github.com"}
    assert METADATA.get_all("License-File") == ["LICENSE"]
    assert METADATA["Description-Content-Type"] == "text/x-rst"


def test_classifiers() -> None:
    """They name the versions of Python that the rest of the configuration does."""
    minors = [int(match[1]) for match in map(VERSION.match, CLASSIFIERS) if match]
    assert CONFIGURATION["options"]["python_requires"] == f">={OLDEST[0]}.{OLDEST[1]}" == f">=3.{minors[0]}"
    assert minors == list(range(minors[0], minors[-1] + 1))
    wheels = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r'"cp3(\d+)-\*"', wheels) == [str(minor) for minor in minors]
    assert "Typing :: Typed" in CLASSIFIERS and not [one for one in CLASSIFIERS if one.startswith("License ::")]


def test_each_package_is_installed() -> None:
    """setup.cfg lists them by name."""
    listed = CONFIGURATION["options"]["packages"].split()
    found = [".".join(file.parent.relative_to(PACKAGE.parent).parts) for file in PACKAGE.rglob("__init__.py")]
    assert listed == sorted(found)


@pytest.mark.parametrize("name", ["Flask", "WSGI", "Django", "redis"])
def test_samples(name: str) -> None:
    """README has what make dist tries, and it is whole."""
    sample = distributions.samples()[name]
    compile(sample.source, name, "exec")
    assert sample.path.startswith("/") and "<" not in sample.path
    assert re.search(rf"^{sample.variable} = ", sample.source, re.MULTILINE)
    assert sample.extras in ["", *CONFIGURATION["options.extras_require"]]


def test_blocks() -> None:
    assert distributions.blocks("a::\n\n    one\n\n      two\n\nb\n\n    three") == ["one\n\n  two\n", "three\n"]


def test_present() -> None:
    """The Python that runs this is among those that are found."""
    found = present()
    name = "{}.{}".format(*sys.version_info)
    assert Path(sys.executable) in (found.get(name), found.get(f"{name}t"))
    assert list(found) == sorted(found, key=lambda one: (int(one.rstrip("t")[2:]), one))


def test_files_of_the_sdist(tmp_path: Path) -> None:
    """setuptools lists them, without building anything."""
    pytest.importorskip("setuptools", reason="an environment of Python 3.12 and later has none")
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", tmp_path], cwd=ROOT, check=True,
        capture_output=True, timeout=60)
    names = set((tmp_path / "wsthread.egg-info" / "SOURCES.txt").read_text().splitlines())
    distributions.compare_with_git({name for name in names if not distributions.GENERATED.search(name)})
    wanted = {
        "CHANGELOG.rst", "LICENSE", "Makefile", "README.rst", "wsthread/_speedups.c", "wsthread/gate.h",
        "wsthread/py.typed", "tests/conftest.py", "tests/apps/protocols.py", "tests/node/package.json",
        "docs/options.rst", "docs/options.py", "examples/chat/templates/index.html", "examples/echo.py",
        "benchmarks/load.c"}
    assert wanted <= names
    assert not [name for name in names if re.search(r"__pycache__|node_modules|\.so$|sqlite3", name)]


@pytest.mark.slow
def test_distributions(tmp_path: Path) -> None:
    """The sdist has all that a wheel is built from; wheels have what they should, with the extension and without."""
    here = next(name for name, python in present().items() if python == Path(sys.executable))
    sdist, pure, wheels = distributions.build({here: Path(sys.executable)}, tmp_path, tmp_path / "dist")
    distributions.check_sdist(sdist)
    distributions.check_wheel(pure, None)
    distributions.check_wheel(wheels[here], here)
    with pytest.raises(AssertionError, match="py3-none-any"):
        distributions.check_wheel(pure, here)
