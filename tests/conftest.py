"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable

import pytest

if os.environ.get("WITHOUT_GC"):  # As some preforking deployments run. What is only freed by it stays then.
    gc.disable()


@pytest.fixture(scope="session")
def need_program() -> Callable[[str], str]:
    """Return a function that finds a program, and skips the test where it is not installed; in CI that fails."""

    def need(name: str) -> str:
        found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")  # Not in each user's PATH.
        if found is None:
            message = f"{name} is not installed"
            if os.environ.get("CI"):
                pytest.fail(f"{message}, but CI must not skip")
            pytest.skip(message)
        return found

    return need
