"""What ``manage.py runserver`` needs to serve the application that is named in the environment."""

from __future__ import annotations

import os

WSGI_APPLICATION = os.environ["WSGI_APPLICATION"]
ROOT_URLCONF = "apps.runserver_settings"
urlpatterns: list[object] = []
SECRET_KEY = "for tests only"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1"]
