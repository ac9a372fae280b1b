"""The recipes of docs/frameworks.rst, under gunicorn."""

from __future__ import annotations

import http.client
import importlib
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Server, serve, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "examples" / "frameworks").glob("*_app.py"))


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    framework = path.stem.removesuffix("_app")
    if os.environ.get("CI"):  # There it must not be missing.
        importlib.import_module(framework)
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    return path


@pytest.fixture
def server(recipe: Path) -> Iterator[Server]:
    with serve("gthread", f"{recipe.stem}:app", "--chdir", str(recipe.parent)) as server:
        yield server
    assert not server.errors()


def test_recipe(server: Server) -> None:
    url = server.url("/ws", "ws")
    with connect(f"{url}?name=ada") as ada, connect(f"{url}?name=grace", origin=Origin(server.url(""))) as grace:
        wait_until(lambda: server.get("/") == "This is the root of the server")
        ada.send("first")
        assert ada.recv(timeout=10) == "ada: first"  # So she is let in.
        grace.send("second")
        assert ada.recv(timeout=10) == "grace: second"
        while grace.recv(timeout=10) != "grace: second":
            pass
        for number in range(3):
            ada.send(f"hello {number}")
            assert ada.recv(timeout=10) == grace.recv(timeout=10) == f"ada: hello {number}"
        descriptors = server.descriptors()
        for origin, query, status in ((None, "", 401), (Origin("http://evil.example"), "?name=eve", 403)):
            with pytest.raises(InvalidStatus) as caught:
                connect(url + query, origin=origin)
            assert caught.value.response.status_code == status
        wait_until(lambda: server.descriptors() <= descriptors)
        wait_until(lambda: server.access("/ws", 101) == 2)
        server.stop()
        with pytest.raises(ConnectionClosed) as closed:
            ada.recv(timeout=10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001


def test_plain_request(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/ws?name=ada")
    response = connection.getresponse()
    assert response.status == 426 and b"This address speaks WebSocket" in response.read()
    connection.close()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_in_the_documentation(path: Path) -> None:
    """As they are here, and no others."""
    page = (ROOT / "docs" / "frameworks.rst").read_text()
    code = path.read_text().partition("\n\n")[2]
    assert textwrap.indent(code, "    ").rstrip() in page
    assert path.read_text().splitlines()[0].strip('"').partition(": ")[2] in page
    assert page.count("import ListenableManager, Upgrader") == len(RECIPES)
