"""A process on the local bus, for tests: it does what it reads from stdin, and says what has come on stdout.

``python bus_process.py ROOM NAME``; a line of stdin is one of::

    publish COUNT SIZE     publishes entries; a third number is the seconds between two
    stats                  prints a JSON object
    fork                   lets a child publish one entry
    mortal                 dies when it is asked what it remembers
    close                  leaves
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from wsthread.bus.backplane import Entry, Gap
from wsthread.bus.local import LocalBackplane


class Heard:
    """A listener that counts."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.disorder = 0
        self.gaps = 0
        self.gone: list[str] = []
        self.begun: dict[str, int] = {}
        self.latest = 0.0
        self.restored: dict[str, int] | None = None
        self.is_mortal = False

    def begin(self, publisher: str, number: int) -> None:
        self.begun[publisher] = number
        self.last[publisher] = number

    def remember(self, entry: Entry) -> None:
        raise NotImplementedError

    def recall(self) -> bytes:
        if self.is_mortal:
            os._exit(1)
        return json.dumps(self.counts).encode()

    def restore(self, memory: bytes) -> None:
        self.restored = json.loads(memory)

    def deliver(self, entry: Entry) -> None:
        if entry.header.get("fail"):
            raise ValueError("a listener that fails")
        self.disorder += entry.number != self.last[entry.publisher] + 1
        self.last[entry.publisher] = entry.number
        self.counts[entry.publisher] = self.counts.get(entry.publisher, 0) + 1
        self.latest = max(self.latest, time.time() - entry.header["at"])

    def note_gap(self, gap: Gap) -> None:
        assert gap.publisher is not None and gap.missing is not None
        self.gaps += gap.missing
        self.last[gap.publisher] += gap.missing

    def note_gone(self, publisher: str) -> None:
        self.gone.append(publisher)


def main() -> None:
    room, name = sys.argv[1:3]
    heard, backplane = Heard(), LocalBackplane([room])
    began = time.monotonic()
    backplane.start(name, heard)
    say({"publisher": backplane.publisher, "took": time.monotonic() - began, "begun": heard.begun})
    for line in sys.stdin:
        match line.split():
            case ["publish", count, size, *pause]:
                slowest = 0.0
                for _ in range(int(count)):
                    began = time.monotonic()
                    backplane.publish("x", {"at": time.time()}, bytes(int(size)))
                    slowest = max(slowest, time.monotonic() - began)
                    time.sleep(float(pause[0]) if pause else 0)
                say({"slowest": slowest})
            case ["fail"]:
                backplane.publish("x", {"at": time.time(), "fail": True})
                say({})
            case ["stats"]:
                rss = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
                say({**vars(heard), "health": backplane.health()._asdict(), "rss": rss,
                     "descriptors": len(os.listdir("/proc/self/fd")), "cpu": time.process_time()})
            case ["fork"]:
                pid = os.fork()
                if pid == 0:
                    backplane.reset_after_fork()
                    backplane.start(name, Heard())
                    backplane.publish("x", {"at": time.time()})
                    backplane.close(1)
                    os._exit(0)
                say({"status": os.waitpid(pid, 0)[1]})
            case ["mortal"]:
                heard.is_mortal = True
                say({})
            case ["close"]:
                backplane.close(5)
                say({"descriptors": len(os.listdir("/proc/self/fd"))})
            case ["start", *history]:
                backplane.start(name, heard, len(history))
                say({})


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
