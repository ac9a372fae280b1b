"""What many applications have: a database, logins, tokens, limits, sessions on the server, and a tool for errors.

The environment variable DATABASE names the database, DIRECTORY one for the sessions. Sentry's events go to the log, a
line for each.
"""

from __future__ import annotations

import os
from typing import Any

import sentry_sdk
from cachelib import FileSystemCache
from flask import Flask, abort, g, jsonify, request, session
from flask_compress import Compress
from flask_cors import CORS
from flask_httpauth import HTTPBasicAuth
from flask_jwt_extended import JWTManager, create_access_token, get_jwt_identity, jwt_required
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy
from flask_talisman import Talisman
from flask_wtf.csrf import CSRFProtect, generate_csrf
from sentry_sdk.integrations.flask import FlaskIntegration
from sentry_sdk.transport import Transport
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode
from wsthread.flask import WebSockets


class Base(DeclarativeBase):
    """Base of the tables."""


db = SQLAlchemy(model_class=Base)
ws = WebSockets()
logins, tokens, basic = LoginManager(), JWTManager(), HTTPBasicAuth()
limiter = Limiter(get_remote_address, storage_uri="memory://")
manager = ListenableManager()


class User(UserMixin, db.Model):  # type: ignore[name-defined]
    """Somebody."""

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Message(db.Model):  # type: ignore[name-defined]
    """What somebody said."""

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class Local(Transport):
    """Sentry's events into the log."""

    def capture_envelope(self, envelope: Any) -> None:
        for item in envelope.items:
            event = item.get_event()
            if event is not None:
                found = event.get("exception", {}).get("values", [{}])[-1]
                print(
                    "sentry:", found.get("value"), event.get("request", {}).get("url"), event.get("transaction"),
                    flush=True)


logins.user_loader(lambda key: db.session.get(User, int(key)))
tokens.user_lookup_loader(lambda header, claims: by_name(claims["sub"]))
basic.verify_password(lambda name, password: by_name(name) if password == "secret" else None)


def by_name(name: str) -> User | None:
    found: User | None = db.session.scalar(db.select(User).filter_by(name=name))
    return found


# WebSockets


@manager.on_message
def message(conn: Connection, opcode: Opcode, payload: str) -> None:
    """Say who somebody is in each way there is, and keep what they said."""
    if payload == "raise":
        raise ArithmeticError("a bug in a callback")
    db.session.add(Message(text=payload))
    db.session.commit()
    basic_user = basic.current_user()
    conn.send_json({
        "login": current_user.name if current_user.is_authenticated else None,
        "token": get_jwt_identity() if "token" in (request.endpoint or "") else None,
        "basic": None if basic_user is None else basic_user.name,
        "before": g.get("tenant"), "session": session.get("visits"),
        "count": db.session.scalar(db.select(db.func.count()).select_from(Message))})


def talk(conn: Connection) -> None:
    for payload in ws.messages(conn):
        message(conn, Opcode.TEXT, str(payload))


# HTTP


def create_app() -> Flask:
    sentry_sdk.init(
        dsn="https://key@sentry.example/1", transport=Local, integrations=[FlaskIntegration()], traces_sample_rate=0.0)
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="for tests only, and long enough for an HMAC",
        JWT_TOKEN_LOCATION=["headers", "query_string"],
        SQLALCHEMY_DATABASE_URI=os.environ["DATABASE"],
        # Whoever holds the only connection while a client says nothing starves all others.
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_timeout": 3},
        SESSION_TYPE="cachelib", SESSION_CACHELIB=FileSystemCache(os.environ["DIRECTORY"]))
    Session(app)
    Talisman(app, force_https=False, session_cookie_secure=False)
    CORS(app)
    Compress(app)
    CSRFProtect(app)
    for extension in (db, logins, tokens, limiter, ws):
        extension.init_app(app)
    app.config["WSTHREAD_ORIGINS"] = ["https://page.example"]

    @app.before_request
    def find_tenant() -> None:
        g.tenant = request.host.partition(":")[0]

    @app.get("/csrf")
    def csrf() -> str:
        return str(generate_csrf())

    @app.post("/login")
    def login() -> Response:
        user = by_name(request.form["name"]) or abort(401)
        login_user(user)
        session["visits"] = session.get("visits", 0) + 1
        return jsonify(create_access_token(user.name))

    @app.get("/messages")
    @limiter.exempt
    def messages() -> Response:
        return jsonify([found.text for found in db.session.scalars(db.select(Message))])

    def mounted() -> Response:
        return ws.upgrade(manager)

    guards: dict[str, Any] = {
        "login": login_required, "token": jwt_required(), "basic": basic.login_required,
        "limited": limiter.limit("3 per hour"), "open": lambda view: view}
    for name, guard in guards.items():
        app.add_url_rule(f"/{name}/mounted", f"{name}-mounted", guard(mounted), websocket=True)
        app.add_url_rule(f"/{name}/above", f"{name}-above", guard(ws.handler(talk)), websocket=True)
        app.add_url_rule(f"/{name}/below", f"{name}-below", ws.handler(guard(talk)), websocket=True)
    with app.app_context():
        db.create_all()
        if by_name("Ada") is None:
            db.session.add(User(name="Ada"))
            db.session.commit()
    return app
