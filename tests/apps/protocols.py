"""Small servers of protocols that run over WebSocket, for the clients that people use: just enough of each.

They are also how such a server looks with this library: a manager for each protocol, what a connection knows in
``conn.context``, and groups for topics, rooms and documents.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.wrappers import Response

from wsthread import Connection, ListenableManager, Opcode, Upgrader

# MQTT 3.1.1, with QoS 0 and 1: https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/

mqtt = ListenableManager()
CONNECT, PUBLISH, SUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 8, 12, 14


@mqtt.on_connect
def mqtt_connected(conn: Connection) -> None:
    conn.context = bytearray()  # What came of a packet; its borders are not those of messages.


@mqtt.on_message
def mqtt_message(conn: Connection, opcode: Opcode, payload: Any) -> None:
    if opcode is not Opcode.BINARY:
        conn.close(1003, "MQTT is binary")
        return
    conn.context += payload
    for first, body in mqtt_packets(conn.context):
        mqtt_packet(conn, first, body)


def mqtt_packets(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take whole packets out of a buffer: first byte and the rest behind the length (2.2.3)."""
    while len(buffer) > 1:
        length = 0
        for i, byte in enumerate(buffer[1:5]):
            length |= (byte & 127) << 7 * i
            if byte < 128:
                break
        else:
            return
        end = 2 + i + length
        if len(buffer) < end:
            return
        packet = buffer[0], bytes(buffer[2 + i:end])
        del buffer[:end]
        yield packet


def mqtt_packet(conn: Connection, first: int, body: bytes) -> None:
    kind = first >> 4
    if kind == CONNECT:
        conn.send(b"\x20\x02\x00\x00")
    elif kind == SUBSCRIBE:
        identifier, rest, granted = body[:2], body[2:], b""
        while rest:
            length = int.from_bytes(rest[:2], "big")
            conn.join(rest[2:2 + length].decode())
            granted += min(rest[2 + length], 1).to_bytes(1, "big")
            rest = rest[3 + length:]
        conn.send(b"\x90" + bytes([2 + len(granted)]) + identifier + granted)
    elif kind == PUBLISH:
        end = 2 + int.from_bytes(body[:2], "big")
        topic, rest = body[2:end].decode(), body[end:]
        if first & 0b110:  # QoS 1.
            conn.send(b"\x40\x02" + rest[:2])
            rest = rest[2:]
        mqtt.broadcast(b"\x30" + mqtt_length(end + len(rest)) + body[:end] + rest, to=topic)
    elif kind == PINGREQ:
        conn.send(b"\xd0\x00")
    elif kind == DISCONNECT:
        conn.close()


def mqtt_length(number: int) -> bytes:
    result = bytearray()
    while True:
        number, digit = number >> 7, number & 127
        result.append(digit | (128 if number else 0))
        if not number:
            return bytes(result)


# GraphQL over WebSocket: https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md

graphql = ListenableManager()


@graphql.on_message
def graphql_message(conn: Connection, opcode: Opcode, payload: Any) -> None:
    message = json.loads(payload)
    kind = message["type"]
    if kind == "connection_init":
        if message.get("payload", {}).get("token") == "wrong":
            conn.close(4403, "Forbidden")
        else:
            conn.context = True
            conn.send_json({"type": "connection_ack"})
    elif kind == "ping":
        conn.send_json({"type": "pong"})
    elif kind == "subscribe" and not conn.context:
        conn.close(4401, "Unauthorized")
    elif kind == "subscribe":
        answer = {"id": message["id"]}
        if "count" not in message["payload"]["query"]:
            conn.send_json({**answer, "type": "error", "payload": [{"message": "no such field"}]})
            return
        for number in range(message["payload"]["variables"]["to"]):
            conn.send_json({**answer, "type": "next", "payload": {"data": {"count": number}}})
        conn.send_json({**answer, "type": "complete"})


# Yjs: what one client of a document says, the others hear. They bring each other up to date by themselves.

yjs = ListenableManager()


@yjs.on_connect
def yjs_connected(conn: Connection) -> None:
    conn.join(conn.request.path)


@yjs.on_message
def yjs_message(conn: Connection, opcode: Opcode, payload: Any) -> None:
    yjs.broadcast(payload, to=conn.request.path, exclude=conn)


# SignalR: https://github.com/dotnet/aspnetcore/blob/main/src/SignalR/docs/specs/HubProtocol.md

signalr = ListenableManager()
END = "\x1e"
INVOCATION, STREAM_ITEM, COMPLETION, STREAM_INVOCATION, PING, CLOSE = 1, 2, 3, 4, 6, 7


@signalr.on_message
def signalr_message(conn: Connection, opcode: Opcode, payload: Any) -> None:
    for record in payload.split(END)[:-1]:
        message = json.loads(record)
        if "protocol" in message:
            signalr_send(conn, {})
        elif message["type"] == INVOCATION:
            signalr_invoke(conn, message)
        elif message["type"] == STREAM_INVOCATION:
            for number in range(*message["arguments"]):
                signalr_send(conn, {"type": STREAM_ITEM, "invocationId": message["invocationId"], "item": number})
            signalr_send(conn, {"type": COMPLETION, "invocationId": message["invocationId"]})
        elif message["type"] == PING:
            signalr_send(conn, {"type": PING})


def signalr_invoke(conn: Connection, message: dict[str, Any]) -> None:
    if message["target"] == "Say":
        said = json.dumps({"type": INVOCATION, "target": "said", "arguments": message["arguments"]})
        signalr.broadcast(said + END)
    answer: dict[str, Any] = {"result": None}
    if message["target"] == "Add":
        answer = {"result": sum(message["arguments"])}
    elif message["target"] != "Say":
        answer = {"error": f"no method {message['target']}"}
    if "invocationId" in message:
        signalr_send(conn, {"type": COMPLETION, "invocationId": message["invocationId"], **answer})


def signalr_send(conn: Connection, message: dict[str, Any]) -> None:
    conn.send(json.dumps(message) + END)


# OCPP-J 1.6: calls, results and errors in JSON, in both directions.

ocpp = ListenableManager(ping_timeout=90)
CALL, CALL_RESULT, CALL_ERROR = 2, 3, 4
TIME = "2026-11-26T12:00:00Z"
ANSWERS: dict[str, dict[str, Any]] = {
    "BootNotification": {"currentTime": TIME, "interval": 60, "status": "Accepted"},
    "Heartbeat": {"currentTime": TIME},
    "StatusNotification": {},
    "StartTransaction": {"transactionId": 1, "idTagInfo": {"status": "Accepted"}},
}
numbers = itertools.count(1)


@ocpp.on_message
def ocpp_message(conn: Connection, opcode: Opcode, payload: Any) -> None:
    kind, identifier, *rest = json.loads(payload)
    if kind == CALL:
        action, _ = rest
        if action not in ANSWERS:
            conn.send_json([CALL_ERROR, identifier, "NotImplemented", f"no {action}", {}])
            return
        conn.send_json([CALL_RESULT, identifier, ANSWERS[action]])
        if action == "StatusNotification":
            conn.send_json([CALL, f"server-{next(numbers)}", "RemoteStartTransaction", {"idTag": conn.request.path}])
    elif kind == CALL_RESULT:
        conn.close(1000, rest[0]["status"])


app = DispatcherMiddleware(Response("nothing here", status=404), {
    "/mqtt": Upgrader(mqtt, subprotocols=["mqtt"], require_subprotocol=True),
    "/graphql": Upgrader(graphql, subprotocols=["graphql-transport-ws"], require_subprotocol=True),
    "/yjs": Upgrader(yjs),
    "/signalr": Upgrader(signalr),
    "/ocpp": Upgrader(ocpp, subprotocols=["ocpp2.0.1", "ocpp1.6"], require_subprotocol=True),
})
