"""Lets pytest run the tests, as ``python manage.py test`` does: ``pytest examples/django_chat``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import django
import pytest
from django.test.utils import setup_databases, setup_test_environment, teardown_databases, teardown_test_environment

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat.settings")
django.setup()


@pytest.fixture(scope="session", autouse=True)
def databases() -> Iterator[None]:
    setup_test_environment()
    made = setup_databases(verbosity=0, interactive=False)
    yield
    teardown_databases(made, verbosity=0)
    teardown_test_environment()
