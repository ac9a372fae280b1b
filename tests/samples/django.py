"""The names that the Python samples of docs/django.rst use without telling where they come from; see usual.py."""
# flake8: noqa: F401 -- It is the samples that use what is imported here.

from __future__ import annotations

from contextlib import ExitStack
from unittest import mock

from django.contrib.auth.decorators import login_required
from django.contrib.auth.signals import user_logged_out
from django.dispatch import receiver
from django.test import Client, TransactionTestCase
from django.urls import path

from wsthread import ListenableManager, testing

manager = ListenableManager()
Message = mock.MagicMock()

opened = ExitStack()
