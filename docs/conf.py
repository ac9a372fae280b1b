"""How Sphinx builds the documentation: make docs. The pages are in build/docs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring

import wsthread
from wsthread.handlers import ListenableOptions
from wsthread.manager import ManagerOptions
from wsthread.options import Meaning

project = "wsthread"
author = "the authors of wsthread"
copyright = f"{author}, MIT licence"
release = version = wsthread.__version__

extensions = ["sphinx.ext.autodoc"]
highlight_language = "python3"
nitpicky = True
smartquotes_action = "D"  # Only dashes; quotation marks stay as they are written.

html_theme = "furo"
html_title = f"wsthread {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
toc_object_entries_show_parents = "hide"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
autoclass_content = "both"
python_use_unqualified_type_names = True
maximum_signature_line_length = 100

#: Modules of others. Their documentation is not here, and the build needs no network.
_OTHERS = (
    "argparse", "collections", "django", "flask", "http", "logging", "prometheus_client", "pytest", "re", "signal",
    "socket", "ssl", "sys", "threading", "types", "werkzeug")
#: Modules that docstrings mention for contributors, and that are no part of the reference.
_INSIDE = (
    "bus.publishing", "bus.reading", "callbacks", "client_socket", "configuration", "django_handshake", "django_scope",
    "entries", "flask_contexts", "link", "options", "wire.client_handshake", "wire.deflate")
#: The same where annotations name them without their module; and reference/types.rst, to which Sphinx 9 finds links.
_UNQUALIFIED = (
    "Addressees", "Blueprint", "Callback", "Compression", "EllipsisType", "Flask", "Headers", "ImproperlyConfigured",
    "Origins", "Overflow", "Payload", "Request", "Response", "Scope", "View", "WSGIApplication", "ellipsis")
nitpick_ignore_regex = [
    ("py:.*", rf"({'|'.join(_OTHERS)})\..*"),
    ("py:.*", "|".join(_UNQUALIFIED)),
    ("py:.*", rf"wsthread\.({'|'.join(map(re.escape, _INSIDE))})(\..*)?"),
]

_MADE_HERE = {"wsthread.Connection", "wsthread.testing.WebSocket", "wsthread.testing.Refused"}
_OTHER_MANAGERS = {"wsthread.ListenableManager", "wsthread.SimpleManager"}
_COMMON = {one.name for one in fields(ManagerOptions)}
_CALLBACKS = {one.name: Meaning.of(one).help for one in fields(ListenableOptions) if one.name.startswith("on_")}


def without_common(lines: list[str]) -> Iterator[str]:
    """Leave out of a docstring the options that all managers have, which the reference tells once."""
    is_common = False
    for line in lines:
        argument = re.match(r" {4}(\w+): ", line)
        if argument:
            is_common = argument[1] in _COMMON
        elif not line.startswith(8 * " "):
            is_common = False
        if not is_common:
            yield line
        if line == "Args:":
            yield "    **options: those of :class:`wsthread.Manager`."


def convert(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Convert a docstring of Google's form to reStructuredText, and make links of the pages that it names.

    sphinx.ext.napoleon as an extension would take the words before the first colon of a property for its type.
    """
    callback = _CALLBACKS.get(name.rpartition(".")[2]) if what == "attribute" else None
    told = [callback] if callback else without_common(lines) if name in _OTHER_MANAGERS else lines
    linked = [re.sub(r"(``)?docs/([\w-]+)\.rst(?(1)``)", r":doc:`/\2`", line) for line in told]
    kind: Any = "method" if what in ("property", "attribute", "data") else what
    # A field as an object of its own would be what other pages mean by its name, such as bytes of History.
    config: Any = Config(napoleon_use_ivar=is_dataclass(obj))
    lines[:] = GoogleDocstring(linked, config, app, kind, name, obj, options).lines()


def hide_arguments(app: Sphinx, what: str, name: str, *rest: Any) -> tuple[str, None] | None:
    """Hide what the classes take that no application makes objects of."""
    return ("", None) if name in _MADE_HERE else None


def skips(app: Sphinx, what: str, name: str, obj: object, is_skipped: bool, options: Any) -> bool | None:
    """Skip the fields of a NamedTuple, which its docstring tells of; None leaves it to Sphinx."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> None:
    """Let Sphinx call what is here."""
    app.connect("autodoc-process-signature", hide_arguments)
    app.connect("autodoc-skip-member", skips)
    app.connect("autodoc-process-docstring", convert)
