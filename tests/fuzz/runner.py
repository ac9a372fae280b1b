"""Starts libFuzzer on one target, with seeds to begin from.

Everything it writes is below ``build/fuzz``: the corpus, which grows from run to run, and the inputs that failed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import atheris

BUILD = Path(__file__).parents[2] / "build" / "fuzz"


def run(
    name: str, target: Callable[[bytes], None], seeds: Iterable[bytes], max_length: int, words: Sequence[str] = (),
) -> None:
    """Fuzz a target with the command line's libFuzzer options, such as ``-runs=1000``; does not return.

    Args:
        name: of the target; its directory below ``build/fuzz``.
        target: raises what it finds.
        seeds: inputs to begin from.
        max_length: of an input in bytes.
        words: worth inserting into inputs.
    """
    corpus, failures = BUILD / name, BUILD / f"{name}-failures"
    for directory in corpus, failures:
        directory.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    options = [f"-max_len={max_length}", f"-artifact_prefix={failures}/", "-timeout=10", "-print_final_stats=1"]
    if words:
        dictionary = BUILD / f"{name}.dict"
        dictionary.write_text("".join(f'"{word}"\n' for word in words))
        options.append(f"-dict={dictionary}")
    inputs = [one for one in sys.argv[1:] if not one.startswith("-")]  # Given some, only these are run, once.
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], *([] if inputs else [str(corpus)])], target)
    atheris.Fuzz()
