"""Fuzzes the calls of what C replaces: arguments of all types and sizes, and what comes of them in C and in Python.

An input is what :mod:`calls` makes calls of. Run it with ``make fuzz``, or on one input with ``python
tests/fuzz/fuzz_speedups.py FILE``. The extension itself is not instrumented; ``make sanitize`` looks at its memory.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

from runner import run  # noqa: E402

with atheris.instrument_imports(include=["wsthread", "calls"]):
    from calls import check

if __name__ == "__main__":
    generator = random.Random(0)
    run("speedups", check, [generator.randbytes(size) for size in range(0, 400, 8)], max_length=400)
