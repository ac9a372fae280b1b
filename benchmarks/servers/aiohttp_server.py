"""aiohttp on asyncio. Argument: the port."""

from __future__ import annotations

import sys

from aiohttp import WSMessage, WSMsgType, web

subscribers: set[web.WebSocketResponse] = set()


async def send(ws: web.WebSocketResponse, message: WSMessage) -> None:
    if message.type is WSMsgType.TEXT:
        await ws.send_str(message.data)
    else:
        await ws.send_bytes(message.data)


async def upgrade(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(compress=False, max_msg_size=64 << 20)
    await ws.prepare(request)
    return ws


async def echo(request: web.Request) -> web.WebSocketResponse:
    ws = await upgrade(request)
    async for message in ws:
        await send(ws, message)
    return ws


async def fanout(request: web.Request) -> web.WebSocketResponse:
    ws = await upgrade(request)
    subscribers.add(ws)
    try:
        async for message in ws:
            for one in list(subscribers):
                try:
                    await send(one, message)
                except ConnectionError:
                    subscribers.discard(one)
    finally:
        subscribers.discard(ws)
    return ws


app = web.Application()
app.add_routes([web.get("/echo", echo), web.get("/fanout", fanout)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), backlog=2048, access_log=None, print=None)
