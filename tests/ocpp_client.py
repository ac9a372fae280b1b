"""A charger, with the library of mobilityhouse: ``python ocpp_client.py ws://127.0.0.1:8000/ocpp/charger-1``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import websockets
from ocpp.routing import on
from ocpp.v16 import ChargePoint, call, call_result
from ocpp.v16.enums import Action, RemoteStartStopStatus


class Charger(ChargePoint):
    """Tells what it is told."""

    @on(Action.remote_start_transaction)
    def on_remote_start(self, id_tag: str, **fields: Any) -> call_result.RemoteStartTransaction:
        print("start", id_tag)
        return call_result.RemoteStartTransaction(RemoteStartStopStatus.accepted)


async def main(url: str) -> None:
    async with websockets.connect(url, subprotocols=["ocpp1.6"]) as socket:  # type: ignore
        print(socket.subprotocol)
        charger = Charger("charger-1", socket)
        running = asyncio.create_task(charger.start())
        boot = await charger.call(call.BootNotification("model", "vendor"))
        print(boot.status, boot.interval)
        for _ in range(3):
            print((await charger.call(call.Heartbeat())).current_time)
        await charger.call(call.StatusNotification(1, "NoError", "Available"))
        try:
            await running
        except websockets.exceptions.ConnectionClosed as error:
            print(error.rcvd)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
