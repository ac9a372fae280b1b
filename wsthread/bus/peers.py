"""The connections of a process of the mesh: those that it has opened, and those that others have.

:mod:`wsthread.bus.mesh` says what they are for.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from pathlib import Path

from .parcels import Kind, Unpacker, pack

QUEUE = 16 << 20  #: Bytes that may wait for one process.


class Peer:
    """A connection to another process, which sends nothing on it. The mesh's lock guards it.

    Attributes:
        path: the socket of that process; its name is the id.
        socket: the connection.
        queue: what waits, the next parcel first, of which the first bytes may have left.
        size: bytes of that.
        left_out: how many entries, by name and publisher; not empty as long as it is full.
        is_broken: whether the connection has ended.
        is_watched: whether the thread waits for it to take more; the thread owns it.
    """

    def __init__(self, path: Path, sock: socket.socket) -> None:
        self.path = path
        self.socket = sock
        self.queue: deque[memoryview] = deque()
        self.size = 0
        self.left_out: Counter[tuple[str, str]] = Counter()
        self.is_broken = False
        self.is_watched = False

    def put(self, data: bytes, name: str, publisher: str) -> bool:
        """Send an entry, or let it wait, or leave it out; return whether the thread has to go on with it."""
        if self.left_out or (self.size and self.size + len(data) > QUEUE):
            self.left_out[name, publisher] += 1
            return False
        return self.put_anyway(data)

    def put_anyway(self, data: bytes) -> bool:
        """The same for what is never left out."""
        self.queue.append(memoryview(data))
        self.size += len(data)
        if len(self.queue) == 1:
            self.flush()
        return bool(self.queue)

    def flush(self) -> None:
        """Send what the kernel takes now."""
        try:
            while self.queue:
                data = self.queue[0]
                sent = self.socket.send(data)
                self.size -= sent
                if sent < len(data):
                    self.queue[0] = data[sent:]
                    break
                self.queue.popleft()
        except BlockingIOError:
            pass
        except OSError:  # The thread will see that it has ended.
            self.is_broken = True
            self.queue.clear()
            self.size = 0
        if self.left_out and self.size <= QUEUE // 2:
            left_out, self.left_out = self.left_out, Counter()
            for (name, publisher), missing in left_out.items():
                self.put_anyway(pack(Kind.GAP, {"name": name, "publisher": publisher, "missing": missing}))


class Inflow:
    """A connection that another process has opened. The mesh's thread owns it.

    Attributes:
        socket: the connection.
        unpacker: of what comes.
        id: of that process; empty before its first parcel.
        met_at: when that came, in monotonic seconds.
        publishers: its ids, by the names of its managers.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.unpacker = Unpacker()
        self.id = ""
        self.met_at = 0.0
        self.publishers: dict[str, str] = {}
