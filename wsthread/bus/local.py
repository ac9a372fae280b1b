"""The backplane of one host, which needs nothing else: the workers of one server tell each other.

All managers of a process share one :class:`wsthread.bus.mesh.Mesh`, which begins with the first of them and ends with
the last one. Where nobody else serves the application, there is none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .. import servers
from ..exceptions import BackplaneFull
from ..locks import taking
from ..logs import tell_aside
from .backplane import Backplane, BackplaneUnavailable, Health, Listener, NotNeeded, new_publisher
from .directory import open_directory
from .mesh import Mesh
from .parcels import MOST_PAYLOAD

_SUCCESSION = 5.0  # Seconds to wait for a process that follows, if the server leaves three times as much.

_lock = threading.Lock()  # Guards the next two.
_meshes: dict[str, Mesh] = {}  # By their directories; usually one.
_users: Counter[Mesh] = Counter()  # How many managers have each; also those that are about to start.


class LocalBackplane(Backplane):
    """A manager's way to the managers of its name in the other worker processes of this host.

    Args:
        room: what these processes have in common, such as addresses that no others have. None for what the server
            tells, which is how gunicorn's workers find each other.
    """

    knows_ends = True

    def __init__(self, room: Sequence[str] | None = None) -> None:
        super().__init__()
        self._room = room
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._name = ""
        self._directory = ""
        self._mesh: Mesh | None = None
        self._since = time.time()
        self._is_healthy = True
        self._remembers = False
        self.listener: Listener
        self.number = 0
        self.received = 0
        self.gaps = 0

    def start(self, name: str, listener: Listener, history: int = 0) -> None:
        """Meet the others; see :class:`wsthread.bus.backplane.Backplane`, as for all here."""
        room = servers.room() if self._room is None else self._room
        if room is None:
            processes = servers.processes()
            if processes > 1:
                raise BackplaneUnavailable(f"{processes} workers serve, and none can find the others under this server")
            raise NotNeeded("nobody else serves the application")
        self.listener = listener
        self._name = name
        self._since = time.time()
        directory = open_directory(room)
        with taking(_lock):
            mesh = _meshes.get(str(directory))
            if mesh is None or not mesh.is_alive:
                mesh = _meshes[str(directory)] = Mesh(directory)
            _users[mesh] += 1
            self._mesh, self._directory = mesh, str(directory)
        self._remembers = history > 0
        if not mesh.start(name, self, recalls=self._remembers):
            tell_aside(
                logging.WARNING, "the manager %r has waited for other processes that do not answer; what they send may "
                "have been missed", name)

    def publish(self, kind: str, header: dict[str, Any], payload: bytes = b"") -> int:
        """Give an entry to all others.

        Raises:
            BackplaneFull: it is larger than 512 MiB.
        """
        mesh = self._mesh
        if len(payload) > MOST_PAYLOAD:
            raise BackplaneFull(f"the local backplane carries {MOST_PAYLOAD} bytes at most")
        if mesh is None:
            return self.number
        return mesh.publish(self._name, self, kind, header, payload)

    def health(self) -> Health:
        """Return how it does: it is not healthy when a process takes so little that entries are left out for it."""
        mesh = self._mesh
        queued, peers, full = (0, 0, 0) if mesh is None else mesh.queued()
        error = f"{full} of {peers} other processes take nothing" if full else None
        if mesh is None or not mesh.is_alive:
            error = "it has ended"
        if self._is_healthy != (error is None):
            self._is_healthy, self._since = error is None, time.time()
        return Health(
            error is None, self._since, queued=queued, published=self.number, received=self.received, gaps=self.gaps,
            peers=peers, error=error)

    def close(self, timeout: float) -> None:
        """Leave the others."""
        mesh, self._mesh = self._mesh, None
        if mesh is None:
            return
        if self._remembers:
            mesh.wait_for_follower(self._name, servers.time_to_stop(3 * _SUCCESSION) / 3)
        mesh.end(self._name, self, timeout)
        with taking(_lock):
            _users[mesh] -= 1
            if _users[mesh] > 0:  # Another manager may be about to start, and the mesh does not know it yet.
                return
            del _users[mesh]
            if _meshes.get(self._directory) is mesh:
                del _meshes[self._directory]
            mesh.stop()

    def reset_after_fork(self) -> None:
        """Be as before the start, in a child."""
        global _lock
        _lock = threading.Lock()  # Another thread of the parent may have held it.
        if self._mesh is not None and _meshes.get(self._directory) is self._mesh:
            del _meshes[self._directory]
            _users.pop(self._mesh, None)
            self._mesh.close_after_fork()
        self.publisher = new_publisher()
        self._begin_anew()
