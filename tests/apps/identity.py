"""Who somebody is, as Flask's extensions keep it: in ``g``. And what else a request leaves there, or gives back.

Each kind of identity has three addresses: ``/<kind>/above``, whose decorator refuses the handshake; ``/<kind>/below``,
whose decorator refuses the connection; and ``/<kind>/mounted``, which is a manager's.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import flask_httpauth
import flask_jwt_extended as jwt
import flask_login
import flask_principal
from flask import Flask, abort, g, request, session

from wsthread import Connection, ListenableManager
from wsthread.flask import WebSockets

ws = WebSockets()
log: list[str] = []
basic = flask_httpauth.HTTPBasicAuth()
bearer = flask_httpauth.HTTPTokenAuth()
tokens = jwt.JWTManager()
logins = flask_login.LoginManager()
principals = flask_principal.Principal(use_sessions=False)


class User(flask_login.UserMixin):
    """Somebody whose name is also the id."""

    def __init__(self, name: str) -> None:
        self.id = name


# What the extensions are told


basic.verify_password(lambda name, password: name if password == "secret" else None)
bearer.verify_token(lambda token: "Ada" if token == "secret" else None)
tokens.user_lookup_loader(lambda header, claims: User(claims["sub"]))
logins.user_loader(User)


@logins.request_loader
def load_user(found: Any) -> User | None:
    """Let a key be good for one request only, as a ticket is."""
    if found.args.get("key") != "secret" or "key" in log:
        return None
    log.append("key")
    return User("Ada")


@principals.identity_loader
def load_identity() -> flask_principal.Identity | None:
    return flask_principal.Identity("Ada") if request.args.get("key") == "secret" else None


@flask_principal.identity_loaded.connect
def provide(sender: object, identity: flask_principal.Identity) -> None:
    if identity.id:
        identity.provides.add(flask_principal.RoleNeed("member"))


def need_user(view: Callable[..., Any]) -> Callable[..., Any]:
    """As in Flask's tutorial."""
    def checked(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs) if g.user is not None else abort(401)
    return checked


def need_member(view: Callable[..., Any]) -> Callable[..., Any]:
    checked: Callable[..., Any] = flask_principal.Permission(flask_principal.RoleNeed("member")).require(401)(view)
    return checked


class Kind(NamedTuple):
    """A way to know somebody.

    Attributes:
        guard: the decorator.
        who: returns the name of the current user.
    """

    guard: Callable[[Callable[..., Any]], Callable[..., Any]]
    who: Callable[[], Any]


KINDS = {
    "basic": Kind(basic.login_required, basic.current_user),
    "bearer": Kind(bearer.login_required, bearer.current_user),
    "jwt": Kind(jwt.jwt_required(), lambda: f"{jwt.get_jwt_identity()}"),
    "jwt-user": Kind(jwt.jwt_required(), lambda: jwt.current_user.id),
    "login": Kind(flask_login.login_required, lambda: flask_login.current_user.id),
    "principal": Kind(need_member, lambda: g.identity.id),
    "tutorial": Kind(need_user, lambda: g.user),
}


# What a request does


def open_database() -> None:
    g.database = sqlite3.connect(":memory:", check_same_thread=False)
    g.user = session.get("user")


def close_database(error: BaseException | None) -> None:
    """As many do, without taking it out of g; and take longer than a callback that does not wait."""
    if "database" not in g:
        return  # A test that looks into the session.
    g.database.close()
    if not first.is_set():
        first.wait(0.2)
        log.append("teardown")


first = threading.Event()  # Set by the first callback.


def begin() -> None:
    if not first.is_set():
        first.set()
        log.append("callback")


def create_app() -> Flask:
    """Return an application, with an empty log."""
    log.clear()
    first.clear()
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="for tests only, and long enough for an HMAC", JWT_TOKEN_LOCATION=["headers", "query_string"],
        JWT_ACCESS_TOKEN_EXPIRES=timedelta(hours=1))
    for extension in (tokens, logins, principals, ws):
        extension.init_app(app)
    app.before_request(open_database)
    app.teardown_request(close_database)
    app.add_url_rule("/log", "log", lambda: log)
    for name, kind in KINDS.items():
        add_rules(app, name, kind)
    return app


def add_rules(app: Flask, name: str, kind: Kind) -> None:
    def talk(conn: Connection) -> None:
        begin()
        for message in ws.messages(conn):
            conn.send(f"{kind.who()} {g.pop('message', 'nothing')}")
            g.message = message

    def say(conn: Connection, *args: Any) -> None:
        conn.send(f"{kind.who()} {g.pop('message', 'nothing')}")
        g.message = "hi"

    manager = ListenableManager(on_connect=lambda conn: begin(), on_message=say)
    for where, view in {
        "below": ws.handler(kind.guard(talk)), "above": kind.guard(ws.handler(talk)),
        "mounted": kind.guard(lambda: ws.upgrade(manager)),
    }.items():
        app.add_url_rule(f"/{name}/{where}", f"{name}-{where}", view, websocket=True)
