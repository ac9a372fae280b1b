"""Tests of the chat. ``python manage.py test`` runs them, in process: there is no server and no port."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth.models import User
from django.test import Client, TransactionTestCase

from wsthread import testing
from wsthread.django_testing import connect


class ChatTest(TransactionTestCase):
    """Callbacks use the database in threads of their own, so it is no TestCase."""

    def client_of(self, name: str) -> Client:
        """Return the browser of somebody who is logged in."""
        user, _ = User.objects.get_or_create(username=name)
        client = Client()
        client.force_login(user)
        return client

    def hear(self, ws: testing.WebSocket, wanted: str) -> dict[str, Any]:
        """Return the next event of a type."""
        while True:
            event: dict[str, Any] = json.loads(ws.receive())
            if event["type"] == wanted:
                return event

    def test_stranger(self) -> None:
        with self.assertRaises(testing.Refused) as caught:
            connect(Client(), "/ws/room/lobby/")
        self.assertEqual(caught.exception.status, 401)

    def test_conversation(self) -> None:
        ada, grace = self.client_of("ada"), self.client_of("grace")
        with connect(ada, "/ws/room/lobby/") as one, connect(grace, "/ws/room/lobby/") as two:
            one.send("  hello ")
            for ws in (one, two):
                message = self.hear(ws, "message")
                self.assertEqual((message["name"], message["text"]), ("ada", "hello"))
        with connect(grace, "/ws/room/lobby/") as later:
            self.assertEqual(self.hear(later, "message"), message)

    def test_rooms(self) -> None:
        ada = self.client_of("ada")
        with connect(ada, "/ws/room/lobby/") as lobby, connect(ada, "/ws/room/attic/") as attic:
            lobby.send("in the lobby")
            self.hear(lobby, "message")
            attic.send("in the attic")
            self.assertEqual(self.hear(attic, "message")["text"], "in the attic")

    def test_who_is_there(self) -> None:
        with connect(self.client_of("ada"), "/ws/room/lobby/") as one:
            self.assertEqual(self.hear(one, "online")["names"], ["ada"])
            with connect(self.client_of("grace"), "/ws/room/lobby/"):
                self.assertEqual(self.hear(one, "online")["names"], ["ada", "grace"])
            self.assertEqual(self.hear(one, "online")["names"], ["ada"])

    def test_log_out(self) -> None:
        ada, elsewhere = self.client_of("ada"), self.client_of("ada")
        with connect(ada, "/ws/room/lobby/") as ws, connect(elsewhere, "/ws/room/lobby/") as other:
            ada.post("/logout/")
            list(ws)
            self.assertEqual((ws.close_code, ws.close_reason), (4401, "logged out"))
            other.ping()

    def test_junk(self) -> None:
        with connect(self.client_of("ada"), "/ws/room/lobby/") as ws:
            for junk in ("", "   ", b"binary"):
                ws.send(junk)
            ws.send("x" * 1001)
            self.assertEqual(len(self.hear(ws, "message")["text"]), 1000)

    def test_pages(self) -> None:
        ada = self.client_of("ada")
        self.assertContains(ada.get("/"), "lobby")
        self.assertRedirects(ada.get("/", {"room": "My room"}), "/room/my-room/")
        self.assertEqual(Client().get("/room/lobby/").status_code, 302)
        data = {"username": "new", "password1": "correct horse", "password2": "correct horse"}
        self.assertRedirects(Client().post("/signup/", data), "/")
