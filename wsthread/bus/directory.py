"""Where the processes of one host find each other: a directory with a Unix socket for each of them.

Nobody else may look into it or write there. A process binds its socket to a hidden name, listens, and renames it: so a
name without a listener is that of a process that has ended, and may be removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import socket
import stat
import struct
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from .backplane import BackplaneUnavailable

_VERSION = "1"  # Of parcels and their meaning: processes of different versions do not meet.
_LONGEST_PATH = 107  # Bytes; the kernel's limit for the address of a Unix socket.
_BACKLOG = 128
_CREDENTIALS = struct.Struct("3i")  # Process, user, group.
_STALE = 60.0  # Seconds after which a hidden name belongs to nobody.
_GONE = (errno.ECONNREFUSED, errno.ENOENT)


def open_directory(room: Iterable[str]) -> Path:
    """Return the directory of the processes that have something in common; make it if it is not there.

    Raises:
        BackplaneUnavailable: it cannot be had, or others may write there.
    """
    try:
        network = os.readlink("/proc/self/ns/net")  # Containers may share a directory, and have the same addresses.
    except OSError:
        network = ""
    key = hashlib.sha256("\0".join([_VERSION, network, *sorted(room)]).encode()).hexdigest()[:16]
    parent = Path(tempfile.gettempdir(), f"wsthread-{os.geteuid()}")
    directory = parent / key
    if len(os.fsencode(directory / _new_name())) + 1 > _LONGEST_PATH:
        raise BackplaneUnavailable(f"the path {directory} is too long for a Unix socket; set TMPDIR to a shorter one")
    for path in (parent, directory):
        _make_private(path)
    return directory


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise BackplaneUnavailable(f"there is no directory {path} ({error.strerror}); set TMPDIR to another") from error
    if not stat.S_ISDIR(status.st_mode):
        raise BackplaneUnavailable(f"{path} is no directory; remove it")
    if status.st_uid != os.geteuid():
        raise BackplaneUnavailable(f"the directory {path} belongs to another user; remove it")
    if status.st_mode & 0o077:
        raise BackplaneUnavailable(f"others may enter the directory {path}; remove it, or chmod 700 {path}")


def _new_name() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def process_of(name: str) -> int:
    """Return the id of the process that a socket belongs to; 0 when that is not its name."""
    process = name.partition("-")[0]
    return int(process) if process.isdecimal() else 0


def listen(directory: Path) -> tuple[socket.socket, Path]:
    """Return a listening socket, and its path.

    Raises:
        BackplaneUnavailable: there is none to be had.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = directory / _new_name()
    hidden = directory / f".{path.name}"
    try:
        listener.bind(str(hidden))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        hidden.rename(path)
    except OSError as error:
        listener.close()
        hidden.unlink(missing_ok=True)
        raise BackplaneUnavailable(f"there is no socket in {directory} ({error.strerror})") from error
    return listener, path


def others(own: Path) -> list[Path]:
    """Return the names of the other processes; remove hidden ones that belong to nobody."""
    found = []
    for path in own.parent.iterdir():
        if not path.name.startswith("."):
            found.append(path)
            continue
        try:
            if path.lstat().st_mtime < time.time() - _STALE:
                path.unlink()
        except OSError:  # Somebody was faster.
            pass
    return sorted(path for path in found if path != own)


def connect(path: Path) -> socket.socket | None:
    """Return a socket that leads to a process; None when the process has ended, and then its name is removed.

    Raises:
        OSError: it takes no more connections at the moment, or is none of ours.
    """
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        peer.setblocking(False)
        peer.connect(str(path))
        check_user(peer)
        return peer
    except OSError as error:
        peer.close()
        if error.errno not in _GONE:
            raise
        path.unlink(missing_ok=True)
        return None
    except BaseException:
        peer.close()
        raise


def check_user(peer: socket.socket) -> None:
    """Make sure that a process is of our user.

    Raises:
        PermissionError: it is another user's.
    """
    if hasattr(socket, "SO_PEERCRED"):
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(credentials)
        if user != os.geteuid():
            raise PermissionError(errno.EPERM, f"it is a process of the user {user}")
