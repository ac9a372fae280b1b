"""A Django project for tests: its settings, its database in a file, and what its URLconf has at the moment."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.management import call_command
from django.test import Client
from django.test.utils import setup_test_environment

Open = Callable[..., Any]

_DIRECTORY = tempfile.TemporaryDirectory(prefix="wsthread-django-")
DATABASE = Path(_DIRECTORY.name, "database.sqlite3")
MIDDLEWARE = [
    "wsthread.django.WebSocketMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.middleware.http.ConditionalGetMiddleware",
]

if not settings.configured:
    settings.configure(
        SECRET_KEY="for tests only", ROOT_URLCONF="django_site", MIDDLEWARE=MIDDLEWARE, USE_TZ=True,
        LANGUAGES=[("en", "English"), ("de", "German")],
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(DATABASE)}})
    django.setup()
    setup_test_environment(debug=False)

#: The URLconf; :func:`site` empties it.
urlpatterns: list[Any] = []


@pytest.fixture(scope="session")
def tables() -> None:
    """Make the tables of the database."""
    call_command("migrate", verbosity=0)


@pytest.fixture
def site(tables: None) -> Iterator[list[Any]]:
    """Return the URLconf for a test to fill."""
    from django.urls import clear_url_caches

    clear_url_caches()
    yield urlpatterns
    urlpatterns.clear()
    clear_url_caches()


@pytest.fixture
def client() -> Client:
    """A test client; :func:`wsthread.django_testing.connect` takes it."""
    return Client()


def open_databases() -> int:
    """Return how many descriptors of this process lead to the database."""
    found = 0
    for one in Path("/proc/self/fd").iterdir():
        try:
            found += one.readlink().name.startswith(DATABASE.name)
        except OSError:
            pass  # It was that of the directory.
    return found
