"""The asyncio server of ``websockets``. Argument: the port."""

from __future__ import annotations

import asyncio
import logging
import sys

from websockets.asyncio.server import ServerConnection, broadcast, serve

subscribers: set[ServerConnection] = set()


async def handle(ws: ServerConnection) -> None:
    assert ws.request is not None
    if ws.request.path != "/fanout":
        async for message in ws:
            await ws.send(message)
        return
    subscribers.add(ws)
    try:
        async for message in ws:
            broadcast(subscribers, message)
    finally:
        subscribers.discard(ws)


async def main() -> None:
    port = int(sys.argv[1])
    async with serve(handle, "127.0.0.1", port, compression=None, max_size=64 << 20, backlog=2048) as server:
        await server.serve_forever()


logging.getLogger("websockets").setLevel(logging.CRITICAL)  # It tells of each client that just goes away.
asyncio.run(main())
