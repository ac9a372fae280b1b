"""The mesh of the processes of one host: each has a connection to each other one, over Unix sockets.

A process sends only on connections that it has opened. Who gets the first parcel of another one, its ``HELLO``, opens a
connection back and says ``HELLO`` there; so two that start at the same time need no rule who goes first. A connection
that ends is the end of a process: nothing else is needed to notice that.

Each remembers what the others do, if anything, so what is remembered is lost when all end at once, as at a reload: the
old workers may be gone before the new ones listen. So the youngest of those that end waits a moment for a younger one,
if the server has started one, and tells it.

One thread per process accepts, reads, and calls the listeners. It waits for no process: what one does not take waits in
a bounded queue, and beyond that is left out and counted; the count is sent before the next entry. Any thread publishes.
"""

from __future__ import annotations

import logging
import math
import selectors
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..locks import taking
from ..logs import tell_aside
from .backplane import Entry, Gap, Listener
from .directory import check_user, connect, listen, others, process_of
from .parcels import Kind, Parcel, Unreadable, pack
from .peers import Inflow, Peer
from .siblings import younger_siblings

_READ = 1 << 18
_MEETING = 1.0  # Seconds to wait for the others at the start.
_RETRY = 1.0  # Seconds until a process is tried again that took no connection.
_STEP = 0.005
_LOOK = 0.05  # Seconds between two looks for a process that follows.
_PAUSE = 0.05  # Seconds after an error that may come at once again.
_REMEMBERED = 1000  # Publishers that have ended, or whose connection has.
_REASON = "it took nothing until too much waited for it"


class Line(Protocol):
    """A manager's end of the mesh.

    Attributes:
        publisher: the id of this process for it.
        listener: the manager's.
        number: of its last entry. The mesh's lock guards it.
        received: how many entries have come. The mesh's thread owns it, as the next one.
        gaps: how many were missed.
    """

    publisher: str
    listener: Listener
    number: int
    received: int
    gaps: int


class _Question(NamedTuple):
    """A manager that starts asks what another process remembers. The mesh's thread owns it.

    Attributes:
        asked: the id of that process.
        answered: set as soon as nothing more will come of it.
    """

    asked: str
    answered: threading.Event


class Mesh:
    """This process among the others.

    Args:
        directory: where they meet.

    Raises:
        BackplaneUnavailable: there is no socket to be had.
        RuntimeError: the system starts no more threads.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = threading.Lock()  # Guards peers, their queues, and the numbers of lines.
        self._peers: dict[str, Peer] = {}  # By id, which is the name of its socket.
        # The thread owns all below, but for the commands.
        self._lines: dict[str, Line] = {}
        self._accepted: set[Inflow] = set()
        self._inflows: dict[str, Inflow] = {}  # Those that have said who they are, by id.
        self._last: OrderedDict[str, int] = OrderedDict()  # The last number of each publisher.
        self._to_try: set[Path] = set()
        self._questions: dict[str, _Question] = {}  # By the names of managers that wait for what others remember.
        self._commands: deque[Callable[[], None]] = deque()
        self._is_stopped = False
        self._retry_at = 0.0
        self._listens = True
        self._has_told_refusal = False
        self._refused: set[Path] = set()  # Those of which the operator knows.
        self._wake_read, self._wake_write = socket.socketpair()
        with ExitStack() as undo:  # There may be no descriptor or no thread left.
            for one in (self._wake_read, self._wake_write):
                undo.callback(one.close)
                one.setblocking(False)
            self._selector = selectors.DefaultSelector()
            undo.callback(self._selector.close)
            self._socket, self._path = listen(directory)
            undo.callback(self._path.unlink, missing_ok=True)
            undo.callback(self._socket.close)
            self._watch(self._socket, self._accept)
            self._watch(self._wake_read, self._empty_wake)
            self._thread = threading.Thread(target=self._run, name="wsthread-bus", daemon=True)
            self._thread.start()
            undo.pop_all()

    # Any thread

    def start(self, name: str, line: Line, recalls: bool = False) -> bool:
        """Begin to listen for a manager, and meet the others; return whether all have answered in time.

        Args:
            name: the manager's.
            line: its end of the mesh.
            recalls: whether to ask one of the others what it remembers.
        """
        has_met = self._command(lambda: self._start(name, line)) and self._wait_for_others()
        if recalls:
            answered = threading.Event()
            self._command(lambda: self._recall(name, answered))
            has_met = answered.wait(_MEETING) and has_met
        return has_met

    def _wait_for_others(self) -> bool:
        end = time.monotonic() + _MEETING
        while not (has_met := self._has_met()) and time.monotonic() < end:
            time.sleep(_STEP)
        return has_met

    def _has_met(self) -> bool:
        with taking(self._lock):
            return all(id in self._inflows for id in self._peers)

    def publish(self, name: str, line: Line, kind: str, header: dict[str, Any], payload: bytes) -> int:
        """Give an entry to all others; return its number."""
        is_left = False
        with taking(self._lock):
            number = line.number + 1
            if self._peers:
                data = pack(Kind.ENTRY, {
                    "name": name, "publisher": line.publisher, "number": number, "kind": kind, "header": header,
                }, payload)
            line.number = number  # Not before: there may be no memory for the parcel.
            if self._peers:
                for peer in self._peers.values():
                    is_left |= peer.put(data, name, line.publisher)
        if is_left:
            self._wake()
        return number

    def wait_for_follower(self, name: str, timeout: float) -> None:
        """Wait until a process that the server has just started has got what this one remembers.

        Args:
            name: the manager's.
            timeout: seconds.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            answers: list[bool] = []
            self._command(lambda: answers.append(self._awaits_follower(name)))
            if answers != [True]:
                break
            time.sleep(_LOOK)

    def end(self, name: str, line: Line, timeout: float) -> None:
        """Stop listening for a manager, when the others have what it has published.

        Args:
            name: the manager's.
            line: its end of the mesh.
            timeout: seconds to wait for the others.
        """
        self._command(lambda: self._forget(name, line))
        end = time.monotonic() + timeout
        while self.queued()[0] and time.monotonic() < end:
            time.sleep(_STEP)

    def queued(self) -> tuple[int, int, int]:
        """Return how many parcels wait, how many processes are known, and for how many entries are left out."""
        with taking(self._lock):
            peers = self._peers.values()
            return sum(len(peer.queue) for peer in peers), len(peers), sum(bool(peer.left_out) for peer in peers)

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread and leave the directory."""
        self._is_stopped = True
        self._path.unlink(missing_ok=True)
        self._wake()
        self._thread.join(_MEETING)

    def close_after_fork(self) -> None:
        """Close the child's copies; the mesh is the parent's."""
        for sock in self._sockets():
            sock.close()
        self._selector.close()

    def _command(self, do: Callable[[], None]) -> bool:
        """Let the thread do something, and wait for that; tell whether it has. If not, it will."""
        is_done = threading.Event()

        def command() -> None:
            try:
                do()
            finally:
                is_done.set()

        self._commands.append(command)
        self._wake()
        return is_done.wait(_MEETING)

    def _wake(self) -> None:
        try:
            self._wake_write.send(b"\0")
        except OSError:  # It is full, so the thread wakes up anyway; or it was closed.
            pass

    # The thread

    def _run(self) -> None:
        while not self._is_stopped:
            try:
                for key, _ in self._selector.select(_RETRY if self._has_to_retry() else None):
                    self._survive(key.data)
                while self._commands:
                    self._survive(self._commands.popleft())
                self._try_again()
                self._watch_peers()
            except Exception as error:  # Such as a MemoryError.
                self._tell(error)
        self._end()

    def _has_to_retry(self) -> bool:
        return bool(self._to_try) or not self._listens

    def _try_again(self) -> None:
        """Open and take the connections for which there was no room; once a second, however much comes meanwhile."""
        now = time.monotonic()
        if not self._has_to_retry() or now < self._retry_at:
            return
        self._retry_at = now + _RETRY
        if not self._listens:
            self._watch(self._socket, self._accept)
            self._listens = True
        to_try, self._to_try = self._to_try, set()
        for path in to_try:
            self._survive(lambda: self._open(path))

    def _survive(self, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:  # Nothing may end this thread.
            self._tell(error)

    @staticmethod
    def _tell(error: Exception) -> None:
        tell_aside(logging.ERROR, "error in the thread of the local backplane", error=error)
        time.sleep(_PAUSE)

    def _watch(self, sock: socket.socket, do: Callable[[], None]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, do)

    def _watch_peers(self) -> None:
        """Go on with the processes that take more, and drop those that are gone."""
        with taking(self._lock):
            peers = [(peer, bool(peer.queue)) for peer in self._peers.values()]
        for peer, waits in peers:
            if peer.is_broken:
                self._drop(peer)
            elif waits is not peer.is_watched:
                peer.is_watched = waits
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waits else 0)
                self._selector.modify(peer.socket, events, self._attend(peer))

    def _attend(self, peer: Peer) -> Callable[[], None]:
        def attend() -> None:
            with taking(self._lock):
                peer.flush()
            if not peer.is_broken:
                try:
                    peer.is_broken = peer.socket.recv(1) == b""  # It never sends here.
                except BlockingIOError:
                    pass
                except OSError:
                    peer.is_broken = True
        return attend

    def _drop(self, peer: Peer) -> None:
        """Forget a connection that has ended; if the process lives, there will be another one."""
        id = peer.path.name
        with taking(self._lock):
            if self._peers.get(id) is peer:
                del self._peers[id]
        for name, question in list(self._questions.items()):
            if question.asked == id:
                self._recall(name, question.answered)
        self._selector.unregister(peer.socket)
        peer.socket.close()
        self._open(peer.path)

    def _empty_wake(self) -> None:
        self._wake_read.recv(_READ)

    def _start(self, name: str, line: Line) -> None:
        is_first = not self._lines
        self._lines[name] = line
        for inflow in self._inflows.values():
            publisher = inflow.publishers.get(name)
            if publisher is not None:
                line.listener.begin(publisher, self._last.get(publisher, 0))
        self._say(Kind.NAME, name, line)  # Others may have met us already.
        if is_first:
            for path in others(self._path):
                self._open(path)

    def _forget(self, name: str, line: Line) -> None:
        if self._lines.get(name) is line:
            del self._lines[name]
            self._say(Kind.END, name, line)

    def _awaits_follower(self, name: str) -> bool:
        """Tell whether there is a younger process that may need what this one remembers, and none that has it."""
        own = _began(self._path)
        younger = [
            inflow for id, inflow in self._inflows.items()
            if name in inflow.publishers and own < _began(self._path.parent / id) < math.inf]
        if any(inflow.met_at + _MEETING < time.monotonic() for inflow in younger):  # It has asked meanwhile.
            return False
        return bool(younger) or not younger_siblings() <= {process_of(id) for id in self._inflows}

    def _recall(self, name: str, answered: threading.Event) -> None:
        """Ask the process that has been there for longest what it remembers."""
        with taking(self._lock):
            peers = [
                peer for id, peer in self._peers.items()
                if id in self._inflows and name in self._inflows[id].publishers]
            if not peers:
                self._questions.pop(name, None)
                answered.set()
                return
            peer = min(peers, key=lambda peer: _began(peer.path))
            self._questions[name] = _Question(peer.path.name, answered)
            peer.put_anyway(pack(Kind.RECALL, {"name": name}))

    def _tell_memory(self, inflow: Inflow, name: str) -> None:
        """Tell another process what a manager here remembers."""
        line = self._lines.get(name)
        data = pack(Kind.MEMORY, {"name": name}, b"" if line is None else line.listener.recall())
        with taking(self._lock):
            peer = self._peers.get(inflow.id)
            if peer is not None:
                peer.put_anyway(data)

    def _take_memory(self, name: str, memory: bytes) -> None:
        question = self._questions.pop(name, None)
        if question is not None:
            try:
                if name in self._lines and memory:
                    self._lines[name].listener.restore(memory)
            finally:
                question.answered.set()

    def _say(self, kind: Kind, name: str, line: Line) -> None:
        with taking(self._lock):
            data = pack(kind, {"name": name, "publisher": line.publisher, "number": line.number})
            for peer in self._peers.values():
                peer.put_anyway(data)

    def _open(self, path: Path) -> None:
        """Open a connection to a process that has none."""
        if path.name in self._peers or path == self._path:
            return
        try:
            sock = connect(path)
        except BlockingIOError:  # It is stopped, and takes no more connections.
            self._to_try.add(path)
            return
        except PermissionError as error:
            tell_aside(logging.WARNING, "no connection to the process %s: %s", path.name, error)
            return
        except OSError as error:  # Such as too many open files: for now.
            self._to_try.add(path)
            if path not in self._refused:
                self._refused.add(path)
                tell_aside(logging.WARNING, "no connection yet to the process %s: %s", path.name, error)
            return
        self._refused.discard(path)
        if sock is None:
            return
        peer = Peer(path, sock)
        self._watch(sock, self._attend(peer))
        with taking(self._lock):
            names = {name: [line.publisher, line.number] for name, line in self._lines.items()}
            peer.put_anyway(pack(Kind.HELLO, {"id": self._path.name, "names": names}))
            self._peers[path.name] = peer

    def _accept(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except BlockingIOError:
            return
        except OSError as error:  # Such as too many open files. It would come again at once.
            self._selector.unregister(self._socket)
            self._listens = False
            if not self._has_told_refusal:
                self._has_told_refusal = True
                tell_aside(logging.WARNING, "the local backplane takes no connection at the moment: %s", error)
            return
        self._has_told_refusal = False
        try:
            sock.setblocking(False)
            check_user(sock)
            inflow = Inflow(sock)
            self._accepted.add(inflow)
            self._watch(sock, lambda: self._read(inflow))
        except BaseException:
            sock.close()
            raise

    def _read(self, inflow: Inflow) -> None:
        try:
            data = inflow.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end_inflow(inflow)
            return
        try:
            for parcel in inflow.unpacker.feed(data):
                self._take(inflow, parcel)
        except (Unreadable, AttributeError, KeyError, TypeError, ValueError) as error:
            tell_aside(logging.WARNING, "cannot read what the process %r sends: %s", inflow.id, error)
            self._end_inflow(inflow)

    def _end_inflow(self, inflow: Inflow) -> None:
        self._selector.unregister(inflow.socket)
        inflow.socket.close()
        self._accepted.discard(inflow)
        if self._inflows.get(inflow.id) is inflow:
            del self._inflows[inflow.id]
            for name, publisher in inflow.publishers.items():
                self._note_gone(name, publisher)

    def _take(self, inflow: Inflow, parcel: Parcel) -> None:
        header = parcel.header
        match parcel.kind:
            case Kind.HELLO:
                inflow.id = Path(header["id"]).name
                inflow.met_at = time.monotonic()
                self._inflows[inflow.id] = inflow
                for name, (publisher, number) in header["names"].items():
                    self._meet(inflow, name, publisher, number)
                self._open(self._path.parent / inflow.id)
            case Kind.NAME:
                self._meet(inflow, header["name"], header["publisher"], header["number"])
            case Kind.END:
                if inflow.publishers.pop(header["name"], None) is not None:
                    self._note_gone(header["name"], header["publisher"])
            case Kind.ENTRY:
                self._last[header["publisher"]] = header["number"]
                line = self._lines.get(header["name"])
                if line is not None:
                    line.received += 1
                    entry = Entry(
                        header["publisher"], header["number"], header["kind"], header["header"], parcel.payload)
                    self._survive(lambda: line.listener.deliver(entry))
            case Kind.RECALL:  # It is to have all that came before the question, from whomever.
                self._commands.append(lambda: self._tell_memory(inflow, header["name"]))
            case Kind.MEMORY:
                self._survive(lambda: self._take_memory(header["name"], parcel.payload))
            case Kind.GAP:
                self._last[header["publisher"]] = self._last.get(header["publisher"], 0) + header["missing"]
                self._note_gap(header["name"], header["publisher"], header["missing"], _REASON)

    def _meet(self, inflow: Inflow, name: str, publisher: str, number: int) -> None:
        """Note that from now on the entries of a publisher come, from the one behind this number on."""
        before = self._last.get(publisher)
        inflow.publishers[name] = publisher
        self._last[publisher] = number
        self._last.move_to_end(publisher)
        while len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)
        line = self._lines.get(name)
        if line is not None:
            self._survive(lambda: line.listener.begin(publisher, number))
            if before is not None and number > before:
                self._note_gap(name, publisher, number - before, "its connection broke")

    def _note_gap(self, name: str, publisher: str, missing: int, reason: str) -> None:
        line = self._lines.get(name)
        if line is not None:
            line.gaps += missing
            self._survive(lambda: line.listener.note_gap(Gap(publisher, missing, reason)))

    def _note_gone(self, name: str, publisher: str) -> None:
        line = self._lines.get(name)
        if line is not None:
            self._survive(lambda: line.listener.note_gone(publisher))

    # The end

    def _sockets(self) -> Iterable[socket.socket]:
        return [
            self._socket, self._wake_read, self._wake_write, *(peer.socket for peer in self._peers.values()),
            *(inflow.socket for inflow in self._accepted)]

    def _end(self) -> None:
        self._path.unlink(missing_ok=True)
        for sock in self._sockets():
            try:
                sock.shutdown(socket.SHUT_RDWR)  # A child of a fork that Python does not know of may have copies.
            except OSError:  # The other side was faster.
                pass
            sock.close()
        self._selector.close()


def _began(path: Path) -> float:
    """Return when a process has begun, in seconds since the epoch."""
    try:
        return path.stat().st_mtime
    except OSError:  # It is about to end.
        return math.inf
