"""Where pages and WebSockets are."""

from __future__ import annotations

from pathlib import Path

from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path
from django.views.static import serve

from wsthread.django import websocket

from . import sockets, views

urlpatterns = [
    path("", views.rooms, name="rooms"),
    path("room/<slug:room>/", views.room, name="room"),
    path("ws/room/<slug:room>/", login_required(websocket(sockets.manager)), name="socket"),
    path("login/", LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("signup/", views.SignUp.as_view(), name="signup"),
    path("logout/", LogoutView.as_view(), name="logout"),
    # On a real site nginx does this, or WhiteNoise.
    path("static/<path:path>", serve, {"document_root": Path(__file__).parent / "static"}, name="static"),
]
