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
read. Where the last column is empty, None is an error.
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
    head = ["Option", "Key", "Type", "Default", "Unit", "Meaning", "None means"]
    rows = [head, *(cells(option) for option in options)]
    lines = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        if not with_keys:
            del row[1]
        first, *others = row
        lines += [f"   * - {first}", *(f"     - {cell}".rstrip() for cell in others)]
    return "\n".join(lines) + "\n"


def cells(option: Field[Any]) -> list[str]:
    """Return what the page says about an option."""
    meaning = Meaning.of(option)
    return [
        f"``{option.name}``", f"``{configuration_key(option.name)}``", f"``{option.type}``", default_text(option),
        meaning.unit, text_of(meaning), meaning.none or ""]


def text_of(meaning: Meaning) -> str:
    """Return what an option means, with links to the pages that it names."""
    return re.sub(r"docs/([\w-]+)\.rst", r":doc:`\1`", meaning.help.replace("*", r"\*"))


if __name__ == "__main__":
    PAGE.write_text(page())
