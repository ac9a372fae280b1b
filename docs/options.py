"""Write the page of the options, docs/options.rst, from their definitions: make docs-options."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from wsthread.configuration import configuration_key
from wsthread.handlers import ListenableOptions
from wsthread.manager import ManagerOptions
from wsthread.options import Meaning, Options, UpgraderOptions, default_text

PAGE = Path(__file__).with_suffix(".rst")
HEAD = """\
.. Written by docs/options.py from wsthread/options.py. Change it there, and run: make docs-options

Options
=======

All are keywords, checked when the object is made: a wrong value raises an error that names the option. The key is
that of ``app.config`` in Flask and that of the settings in Django; :doc:`reference/configuration` tells how they are
read. Where nothing is said of None, it is an error.
"""
MANAGER = """
Of all managers
---------------

:doc:`Managers <reference/managers>` of all kinds take them. Limits are those of one process. A value that makes
no sense is a ValueError.
"""
BETWEEN_PROCESSES = """
They take callbacks about other processes, too, as keywords or in the other ways that
:class:`wsthread.ListenableManager` has.
"""
CALLBACKS = """
Of ListenableManager
--------------------

Callbacks are given in the same ways.
"""
UPGRADER = """
Of Upgrader
-----------

:class:`wsthread.Upgrader`, the routes of Flask and the views of Django take them. A value of the wrong type is a
TypeError.
"""


def page() -> str:
    """Return the text of the page."""
    between = _own(ManagerOptions, Options)
    callbacks = _own(ListenableOptions, ManagerOptions)
    return "".join([
        HEAD, MANAGER, table(fields(Options), with_keys=True),
        BETWEEN_PROCESSES, table(between, with_keys=False), CALLBACKS, table(callbacks, with_keys=False),
        UPGRADER, table(fields(UpgraderOptions), with_keys=True)])


def _own(definition: type[Options], base: type[Options]) -> list[Field[Any]]:
    """Return the options that a definition has besides those of its base."""
    common = {option.name for option in fields(base)}
    return [option for option in fields(definition) if option.name not in common]


def table(options: Iterable[Field[Any]], with_keys: bool) -> str:
    """Return a table with a row for each option."""
    head = [["Option, and its key" if with_keys else "Option"], ["Type, default, unit"], ["Meaning"]]
    lines = ["", ".. list-table::", "   :header-rows: 1", "   :widths: 36 24 40", ""]
    for row in [head, *(cells(option, with_keys) for option in options)]:
        for number, paragraphs in enumerate(row):
            lines.append(f"   {' ' if number else '*'} - {paragraphs[0]}")
            for paragraph in paragraphs[1:]:
                lines += ["", f"       {paragraph}"]
    return "\n".join(lines) + "\n"


def cells(option: Field[Any], with_key: bool) -> list[list[str]]:
    """Return what the page says about an option: for each cell its paragraphs."""
    meaning = Meaning.of(option)
    names = [f"``{option.name}``", *([f"``{configuration_key(option.name)}``"] if with_key else [])]
    kind = [f"``{option.type}``", default_text(option), *([meaning.unit] if meaning.unit else [])]
    return [names, kind, [text_of(meaning), *([f"None: {meaning.none}"] if meaning.none else [])]]


def text_of(meaning: Meaning) -> str:
    """Return what an option means, with links to the pages that it names."""
    return re.sub(r"docs/([\w-]+)\.rst", r":doc:`\1`", meaning.help.replace("*", r"\*"))


if __name__ == "__main__":
    PAGE.write_text(page())
