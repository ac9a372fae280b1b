"""Settings of the chat. Those of a real site have a secret key, its host, and DEBUG is False."""

from __future__ import annotations

import os
from pathlib import Path

SITE = Path(__file__).parent.parent

DEBUG = True
SECRET_KEY = os.environ.get("CHAT_SECRET_KEY", "for an example only")
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]

INSTALLED_APPS = [
    "chat",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
]
MIDDLEWARE = [
    "wsthread.django.WebSocketMiddleware",  # So that handshakes get a 401 where pages are redirected to the login.
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
    ]},
}]

ROOT_URLCONF = "chat.urls"
WSGI_APPLICATION = "chat.wsgi.application"
DATABASE = os.environ.get("CHAT_DATABASE", str(SITE / "chat.sqlite3"))
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE,
        "TEST": {"NAME": f"{DATABASE}.test"},  # One in memory would not be closed with the threads that use it.
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
LOGIN_REDIRECT_URL = "rooms"
LOGIN_URL = LOGOUT_REDIRECT_URL = "login"
