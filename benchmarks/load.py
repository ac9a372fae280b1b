"""The load generator, load.c, as a child process: what it prints, and what it is told."""

from __future__ import annotations

import json
import subprocess
import threading
from typing import Any

import machine
import programs

Event = dict[str, Any]


class LoadFailed(Exception):
    """The load generator came to no result."""


class Load:
    """A running load generator.

    Args:
        port: of the server.
        arguments: its command line but for the port.
        cpu: where it is pinned; None for wherever the system likes.
        timeout: seconds until it is killed, whatever it does then.

    Attributes:
        process: the process.
    """

    def __init__(self, port: int, arguments: list[str], cpu: int | None = None, timeout: float = 300) -> None:
        command = [str(programs.LOAD), *arguments, "--port", str(port)]
        with machine.pinned(cpu):
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._killer = threading.Timer(timeout, self.process.kill)
        self._killer.start()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *exc: object) -> None:
        """Let it drop its connections."""
        self._killer.cancel()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def event(self) -> Event:
        """Return the next thing that it tells.

        Raises:
            LoadFailed: it has ended, or was too slow.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise LoadFailed("the load generator did not end in time, or ended too early")
        event: Event = json.loads(line)
        return event

    def ask(self, command: str) -> Event:
        """Tell it to do something with its connections and return what it tells of that; see load.c."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self.event()
