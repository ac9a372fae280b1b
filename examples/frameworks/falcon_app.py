"""A WebSocket in Falcon: gunicorn --worker-class gthread --threads 2 falcon_app:app"""

import falcon
from werkzeug.exceptions import Unauthorized
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from wsthread import ListenableManager, Upgrader

pages = falcon.App()
manager = ListenableManager()
upgrader = Upgrader(manager)


@manager.on_connect
def connected(conn):
    conn.context = conn.request.args["name"]


@manager.on_message
def message(conn, opcode, payload):
    manager.broadcast(f"{conn.context}: {payload}")


def ws(environ, start_response):
    request = falcon.Request(environ)
    if not request.get_param("name"):
        return Unauthorized("Who are you?")(environ, start_response)
    return upgrader(environ, start_response)


class Index:
    def on_get(self, req, resp):
        resp.text = "This is the root of the server"


pages.add_route("/", Index())
app = DispatcherMiddleware(pages, {"/ws": ws})
