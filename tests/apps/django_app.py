"""A Django project with one room, for the tests under real servers."""

from __future__ import annotations

import logging
import threading
from typing import Any

import django_site
from django.conf import settings
from django.contrib.auth import get_user_model, login, logout
from django.contrib.auth.decorators import login_required
from django.contrib.auth.signals import user_logged_out
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.db import connections
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from wsthread import Connection, ListenableManager, Opcode
from wsthread.django import get_manager, messages, request_of, websocket

logging.basicConfig(level=logging.INFO, format="[%(levelname)s] %(name)s: %(message)s")
settings.ALLOWED_HOSTS = ["127.0.0.1"]
call_command("migrate", verbosity=0)
connections.close_all()  # The main thread has no request that would do it.

manager = ListenableManager()


@manager.on_connect
def connected(conn: Connection) -> None:
    session = request_of(conn).session
    assert session is not None
    conn.join(f"session {session.session_key}")


@manager.on_message
def message(conn: Connection, opcode: Opcode, payload: str) -> None:
    user = request_of(conn).user
    manager.broadcast(f"{user.get_username()} of {get_user_model().objects.count()}: {payload}")


def leave(request: HttpRequest, **rest: Any) -> None:
    manager.close(to=f"session {request.session.session_key}", code=4401, reason="logged out")


user_logged_out.connect(leave)


@websocket
def loop(conn: Connection) -> None:
    for message in messages(conn):
        get_manager().broadcast(f"{get_user_model().objects.count()}: {message!s}")


def log_in(request: HttpRequest) -> HttpResponse:
    user, _ = get_user_model().objects.get_or_create(username=request.GET["name"])
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    return HttpResponse("in")


def log_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return HttpResponse("out")


def stats(request: HttpRequest) -> HttpResponse:
    return JsonResponse({
        "connections": len(manager.connections) + len(get_manager().connections),
        "databases": django_site.open_databases(), "threads": threading.active_count()})


django_site.urlpatterns += [
    path("ws", login_required(websocket(manager))), path("loop", loop), path("login", log_in), path("logout", log_out),
    path("stats", stats),
]
application = get_wsgi_application()
