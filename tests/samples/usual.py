"""The names that the Python samples of a page may use without telling where they come from.

tests/test_docs.py runs each sample with them. A page with a module of its own name here has those names instead.
"""
# flake8: noqa: F401 -- It is the samples that use what is imported here.

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import flask
import pytest
from django.urls import path
from flask import Blueprint, Flask, abort, render_template, request, url_for
from flask_login import FlaskLoginClient, current_user, login_required
from itsdangerous import BadSignature, URLSafeTimedSerializer
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

import wsthread
from wsthread import (
    ConnectionClosed, Deflate, History, ListenableManager, Manager, Opcode, RedisBackplane, SimpleManager, Upgrader,
    testing,
)
from wsthread.flask import WebSockets

app = Flask(__name__)
app.secret_key = "of a sample"
application: Any = app
ws = WebSockets(app)
chat = Blueprint("chat", __name__)
manager = ListenableManager()
chargers = ListenableManager()
news = ListenableManager()
payload = "Hello"
chapters = ["one", "two"]
user_id = 42
ada = SimpleNamespace(id=1, name="Ada")

# They would need a database, a Redis or a model of their own.
db, Message, Publisher, limiter, answer, write, user_of = (mock.MagicMock() for _ in range(7))


def _same(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


limiter.limit.return_value = _same

opened = ExitStack()  # What the test closes behind the sample.
conn = opened.enter_context(testing.connect(Upgrader(manager))).connection
