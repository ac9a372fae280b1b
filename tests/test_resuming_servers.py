"""Clients that come back to four workers, some of which are killed, stopped or replaced meanwhile.

Each text has its sender and a number. What a client gets of a sender has no hole and nothing twice, unless it was told
``recovered: false`` in between.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import Server, serve, wait_until
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from wsthread.wire.resume import SUBPROTOCOL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
CLIENTS, RECONNECTS = 10, 300
LOST = (OSError, EOFError, ConnectionClosed, InvalidHandshake, TimeoutError)


class Client(threading.Thread):
    """Somebody who listens in a room, and comes and goes."""

    def __init__(self, server: Server, room: str, seed: int, reconnects: int) -> None:
        super().__init__(daemon=True)
        self.room = room
        self.recovered: list[bool] = []
        self.faults: list[str] = []
        self.last: dict[str, int] = {}  # Of each sender.
        self.is_up_to_date = threading.Event()
        self.is_over = threading.Event()
        self._server = server
        self._chance = random.Random(seed)
        self._reconnects = reconnects
        self._seen: dict[str, int] | None = None
        self._has_lost = False
        self._got: set[str] = set()
        self._may_have_holes: set[str] = set()  # Senders of whom it does not know what came last.

    def run(self) -> None:
        stays = self._chance.random()
        while not self.is_over.is_set():
            try:
                with connect(
                    self._server.url(f"/ws/{self.room}", "ws"), subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
                    open_timeout=5, close_timeout=0.1,
                ) as connection:
                    connection.send(json.dumps(self._seen))
                    until = time.monotonic() + stays if self._reconnects else float("inf")
                    while time.monotonic() < until and not self.is_over.is_set():
                        try:
                            self._take(str(connection.recv(timeout=0.05)))
                        except TimeoutError:
                            pass
                    connection.socket.close()  # As when a network vanishes.
                    self._reconnects -= 1
            except LOST:
                time.sleep(0.02)
            self.is_up_to_date.clear()
            stays = self._chance.random() / 2

    def _take(self, message: str) -> None:
        if message.startswith("{"):
            notice = json.loads(message)
            self._seen = notice.get("seen", self._seen)
            if notice.get("recovered"):
                self.recovered.append(not self._has_lost)
                self._has_lost = False
                self.is_up_to_date.set()
            elif "recovered" in notice:
                self._has_lost = True
                self._may_have_holes = set(self.last)
            return
        number, feed, text = message.partition("\n")
        if number:
            assert self._seen is not None
            publisher, _, digits = number.partition(":")
            self._seen[publisher] = int(digits)
        if feed:
            self._check(text)

    def _check(self, text: str) -> None:
        _, _, sender, digits = text.split()
        if text in self._got:
            self.faults.append(f"twice: {text}")
        self._got.add(text)
        number = int(digits)
        before = self.last.get(sender)
        if before is not None and number != before + 1 and sender not in self._may_have_holes:
            self.faults.append(f"{text} after {before}; {self.recovered[-3:]}")
        self._may_have_holes.discard(sender)
        self.last[sender] = number


class Sender(threading.Thread):
    """Somebody who talks in both rooms, by one connection as long as it lives; then it is somebody else."""

    def __init__(self, server: Server, name: str) -> None:
        super().__init__(daemon=True)
        self.is_over = threading.Event()
        self.last: dict[str, int] = {}
        self.lives = 0
        self._server = server
        self._name = name

    def run(self) -> None:
        while not self.is_over.is_set():
            self.lives += 1
            try:
                with connect(self._server.url(f"/ws/{self._name}", "ws"), open_timeout=5, close_timeout=0.1) as socket:
                    self._talk(socket)
            except LOST:
                time.sleep(0.02)

    def _talk(self, socket: ClientConnection) -> None:
        number = 0
        while not self.is_over.is_set():
            number += 1
            for room in "ab":
                sender = f"{self._name}-{self.lives}-{room}"
                socket.send(f"say {room} {sender} {number}")
                self.last[sender] = number
            time.sleep(0.02)


def workers(server: Server) -> list[int]:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def leave_alone(server: Server) -> None:
    time.sleep(1)


def kill(server: Server) -> None:
    os.kill(random.choice(workers(server)), signal.SIGKILL)
    time.sleep(1.5)


def stop(server: Server) -> None:
    pid = random.choice(workers(server))
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.5)


def reload(server: Server) -> None:
    server.signal(signal.SIGHUP)
    time.sleep(8)


@pytest.mark.parametrize(("event", "always_recovers"), [
    (leave_alone, True), (kill, False), (stop, True), (reload, False)])
def test_reconnects(event: Callable[[Server], None], always_recovers: bool) -> None:
    with serve(
        "gthread", "apps.resuming:app", "--workers", "4", "--graceful-timeout", "5", env={"HISTORY": "30000"},
    ) as server:
        wait_until(lambda: len(re.findall("Booting worker", server.log())) >= 4)
        senders = [Sender(server, f"s{number}") for number in range(4)]
        clients = [
            Client(server, "ab"[number % 2], number, RECONNECTS // CLIENTS) for number in range(CLIENTS)]
        for thread in (*senders, *clients):
            thread.start()
        end = time.monotonic() + 60
        while any(client._reconnects > 0 for client in clients) and time.monotonic() < end:
            event(server)
        wait_until(lambda: all(client.is_up_to_date.is_set() for client in clients), timeout=30)
        for sender in senders:
            sender.is_over.set()
            sender.join(10)
        # Who talked last is complete: its connection lives.
        expected = {
            room: {f"{sender._name}-{sender.lives}-{room}": sender.last[f"{sender._name}-{sender.lives}-{room}"]
                   for sender in senders} for room in "ab"}
        try:
            wait_until(lambda: all(client.last.items() >= expected[client.room].items() for client in clients))
        finally:
            for client in clients:
                client.is_over.set()
                client.join(10)
            told = [one for client in clients for one in client.recovered]
            print(f"{event.__name__}: {len(told)} connections, {told.count(False)} not recovered")
            faults = [fault for client in clients for fault in client.faults]
            assert faults == [], server.log()
        assert len(told) >= RECONNECTS
        assert sum(told) > len(told) / 2
        if always_recovers:
            assert all(told)
