"""The WebSockets: who is in which room, what is said there, and what logging out does."""

from __future__ import annotations

import json
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

# A character has four bytes at most.
manager = ListenableManager(name="chat", max_message_size=4 * MAX_TEXT)


class Member(NamedTuple):
    """Who somebody is, and where. A connection has it as its context."""

    author: AbstractBaseUser
    room: str


@manager.on_connect
def join(conn: Connection) -> None:
    request = request_of(conn)  # That of the handshake: login_required has let it pass.
    match, user, session = request.resolver_match, request.user, request.session
    key = session.session_key
    assert match is not None and key is not None and isinstance(user, AbstractBaseUser)
    member = conn.context = Member(user, match.kwargs["room"])
    conn.join(session_group(key))
    if not session.exists(key):  # Logged out since the handshake, before the line above.
        conn.close(LOGGED_OUT, "logged out")
        return
    conn.join(room_group(member.room), info=user.get_username())
    last = Message.objects.filter(room=member.room).select_related("author").order_by("-pk")[:HISTORY]
    for message in reversed(last):
        conn.send(encode_message(message))


@manager.on_message
def say(conn: Connection, opcode: Opcode, payload: str | bytes) -> None:
    text = str(payload).strip() if opcode is Opcode.TEXT else ""
    if text:
        member = conn.context
        message = Message.objects.create(room=member.room, author=member.author, text=text[:MAX_TEXT])
        manager.broadcast(encode_message(message), to=room_group(member.room))


@manager.on_members
def tell_members(group: str) -> None:
    """Tell a room who is there now. All workers are called, so each tells its own clients."""
    names = sorted({member.info for member in manager.members(group)})
    manager.broadcast(encode("online", names=names), to=group, local=True)


@receiver(user_logged_out)
def close_sockets(sender: Any, request: HttpRequest, **rest: Any) -> None:
    """Close the WebSockets of a browser that logs out. The signal comes before the session ends."""
    manager.close(to=session_group(request.session.session_key), code=LOGGED_OUT, reason="logged out")


def session_group(session_key: str | None) -> str:
    """Return the group of the connections of one session."""
    return f"session {session_key}"


def room_group(room: str) -> str:
    """Return the group of those in a room, who are its members."""
    return f"room {room}"


def encode_message(message: Message) -> str:
    return encode("message", id=message.pk, name=message.author.get_username(), text=message.text)


def encode(event: str, **fields: Any) -> str:
    return json.dumps({"type": event, **fields})
