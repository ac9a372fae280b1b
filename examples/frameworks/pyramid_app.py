"""A WebSocket in Pyramid: gunicorn --worker-class gthread --threads 2 pyramid_app:app"""

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPUnauthorized
from pyramid.response import Response

from wsthread import ListenableManager, Upgrader

manager = ListenableManager()
upgrader = Upgrader(manager)


@manager.on_connect
def connected(conn):
    conn.context = conn.request.args["name"]


@manager.on_message
def message(conn, opcode, payload):
    manager.broadcast(f"{conn.context}: {payload}")


def ws(request):
    if not request.GET.get("name"):
        raise HTTPUnauthorized("Who are you?")
    return request.get_response(upgrader)


def index(request):
    return Response("This is the root of the server")


with Configurator() as config:
    config.add_route("ws", "/ws")
    config.add_view(ws, route_name="ws")
    config.add_route("index", "/")
    config.add_view(index, route_name="index")
    app = config.make_wsgi_app()
