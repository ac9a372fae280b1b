"""A chat of those who have logged in: a blueprint, Flask-Login, and Flask-SQLAlchemy with a single database connection.

The database is that of the environment variable DATABASE.
"""

from __future__ import annotations

import os
from typing import Any

from flask import Blueprint, Flask, jsonify, request
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user, logout_user
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode
from wsthread.flask import WebSockets


class Base(DeclarativeBase):
    """Base of the tables."""


db = SQLAlchemy(model_class=Base)
Model: Any = db.Model  # To mypy it is a variable.
logins = LoginManager()
ws = WebSockets()
watchers = ListenableManager()
chat = Blueprint("chat", __name__, url_prefix="/chat")


class Member(UserMixin, Model):
    """Somebody who may log in."""

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Message(Model):
    """What somebody said."""

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    text: Mapped[str]


@logins.user_loader
def load_member(key: str) -> Member | None:
    return db.session.get(Member, int(key))


# HTTP


@chat.post("/login")
def login() -> str:
    member = Member(name=request.form["name"])
    db.session.add(member)
    db.session.commit()
    login_user(member)
    return "welcome"


@chat.post("/logout")
@login_required
def logout() -> str:
    gone = current_user.id
    logout_user()
    return str(sum(
        manager.close_where(lambda conn: conn.context == gone, 4401, "logged out")
        for manager in (ws.manager, watchers)))


@chat.get("/history")
def history() -> Response:
    return jsonify([f"{said.name}: {said.text}" for said in db.session.scalars(db.select(Message))])


# The blocking style, with the context of each message


@ws.route("/<room>", bp=chat)
@login_required
def talk(conn: Connection, room: str) -> None:
    """Be refused after the handshake, with a close code that the page can see."""
    take_part(conn, room)


@chat.route("/strict/<room>", websocket=True)
@login_required
@ws.handler
def talk_strictly(conn: Connection, room: str) -> None:
    """Be refused by the handshake."""
    take_part(conn, room)


def take_part(conn: Connection, room: str) -> None:
    conn.context = current_user.id
    conn.join(room)
    for message in ws.messages(conn):
        text = str(message)
        db.session.add(Message(name=current_user.name, text=text))
        db.session.commit()
        ws.manager.broadcast(f"{current_user.name}: {text}", to=room)


# The callback style


@watchers.on_connect
def watch(conn: Connection) -> None:
    conn.context = current_user.id
    conn.send(f"{current_user.name} watches")


@watchers.on_message
def count(conn: Connection, opcode: Opcode, payload: str) -> None:
    total = db.session.scalar(db.select(db.func.count()).select_from(Message))
    conn.send(f"{current_user.name}: {total}")


@watchers.on_close
def leave(conn: Connection) -> None:
    db.session.add(Message(name=current_user.name, text=f"left with {conn.close_code}"))
    db.session.commit()


ws.mount("/watch", watchers, bp=chat, endpoint="watch")


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="for tests only",
        SQLALCHEMY_DATABASE_URI=os.environ["DATABASE"],
        # Whoever holds the only connection while a client says nothing starves all others.
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_timeout": 3})
    db.init_app(app)
    logins.init_app(app)
    ws.init_app(app)
    app.register_blueprint(chat)
    with app.app_context():
        db.create_all()
    return app
