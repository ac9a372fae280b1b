"""A WebSocket in Bottle: gunicorn --worker-class gthread --threads 2 bottle_app:app"""

from bottle import BaseRequest, Bottle
from werkzeug.exceptions import Unauthorized
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from wsthread import ListenableManager, Upgrader

pages = Bottle()
manager = ListenableManager()
upgrader = Upgrader(manager)


@manager.on_connect
def connected(conn):
    conn.context = conn.request.args["name"]


@manager.on_message
def message(conn, opcode, payload):
    manager.broadcast(f"{conn.context}: {payload}")


def ws(environ, start_response):
    request = BaseRequest(environ)  # For get_cookie("user", secret=...), say.
    if not request.query.name:
        return Unauthorized("Who are you?")(environ, start_response)
    return upgrader(environ, start_response)


@pages.route("/")
def index():
    return "This is the root of the server"


app = DispatcherMiddleware(pages, {"/ws": ws})
