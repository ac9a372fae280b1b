"""The WebSockets: who is in which room, what is said there, and what logging out does."""

from __future__ import annotations

import json
import threading
from typing import Any, NamedTuple

from django.contrib.auth.models import AbstractBaseUser
from django.contrib.auth.signals import user_logged_out
from django.dispatch import receiver
from django.http import HttpRequest

from wsthread import Connection, ListenableManager, Opcode
from wsthread.django import request_of

from .models import Message

LOGGED_OUT = 4401
MAX_TEXT = 1000  # Characters.
HISTORY = 50  # Messages.

manager = ListenableManager(max_message_size=4 * MAX_TEXT)  # Bytes, of which a character has four at most.
announcing = threading.Lock()  # Guards the order of the announcements: the last one to arrive has the right names.


class Member(NamedTuple):
    """Who somebody is, and where. A connection has it as its context."""

    author: AbstractBaseUser
    room: str

    @property
    def name(self) -> str:
        return self.author.get_username()


@manager.on_connect
def join(conn: Connection) -> None:
    request = request_of(conn)  # That of the handshake: login_required has let it pass.
    match, user, session = request.resolver_match, request.user, request.session
    key = session.session_key
    assert match is not None and key is not None and isinstance(user, AbstractBaseUser)
    member = conn.context = Member(user, match.kwargs["room"])
    conn.join(group_of(key))
    if not session.exists(key):  # Logged out since the handshake, before the line above.
        conn.close(LOGGED_OUT, "logged out")
        return
    conn.join(f"room {member.room}")
    last = Message.objects.filter(room=member.room).select_related("author").order_by("-pk")[:HISTORY]
    for message in reversed(last):
        conn.send(encode_message(message))
    announce(member.room)


@manager.on_message
def say(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    text = str(payload).strip() if opcode is Opcode.TEXT else ""
    if text:
        member = conn.context
        message = Message.objects.create(room=member.room, author=member.author, text=text[:MAX_TEXT])
        manager.broadcast(encode_message(message), to=f"room {member.room}")


@manager.on_close
def leave(conn: Connection) -> None:
    if conn.context is not None:  # Else join() did not get that far.
        announce(conn.context.room)


@receiver(user_logged_out)
def close_sockets(sender: Any, request: HttpRequest, **rest: Any) -> None:
    """Close the WebSockets of a browser that logs out. The signal comes before the session ends."""
    manager.close(to=group_of(request.session.session_key), code=LOGGED_OUT, reason="logged out")


def group_of(session_key: str | None) -> str:
    """Return the group of the connections of one session."""
    return f"session {session_key}"


def announce(room: str) -> None:
    """Tell a room who is there now."""
    with announcing:  # A broadcast waits for nobody, so nor does this lock.
        names = sorted({conn.context.name for conn in manager.in_group(f"room {room}")})
        manager.broadcast(encode("online", names=names), to=f"room {room}")


def encode_message(message: Message) -> str:
    return encode("message", id=message.pk, name=message.author.get_username(), text=message.text)


def encode(event: str, **fields: Any) -> str:
    return json.dumps({"type": event, **fields})
