"""Where processes meet: who may not get in, and whose names are removed."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wsthread.bus import directory
from wsthread.bus.backplane import BackplaneUnavailable

ROOM = ("('127.0.0.1', 8000)",)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the parent of directories, which is not there yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"wsthread-{os.geteuid()}"


def test_it_is_private_and_its_rooms_own(place: Path) -> None:
    own = directory.open_directory(ROOM)
    assert own.parent == place and own.stat().st_mode & 0o777 == place.stat().st_mode & 0o777 == 0o700
    assert directory.open_directory(ROOM) == own
    assert directory.open_directory(["b", "a"]) == directory.open_directory(["a", "b"]) != own


def by_symlink(place: Path) -> None:
    place.symlink_to(place.parent, target_is_directory=True)


def by_file(place: Path) -> None:
    place.touch()


def by_mode(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def by_mode_below(place: Path) -> None:
    directory.open_directory(ROOM).chmod(0o755)


def by_owner(place: Path) -> None:
    place.mkdir(0o700)
    os.chown(place, 12345, 12345)


@pytest.mark.parametrize(("spoil", "reason"), [
    (by_symlink, "is no directory"), (by_file, "no directory"), (by_mode, "others may enter"),
    (by_mode_below, "others may enter"),
    pytest.param(by_owner, "belongs to another user", marks=pytest.mark.skipif(
        os.geteuid() != 0, reason="only root can give a directory away"))])
def test_what_is_not_ours_alone_is_refused(place: Path, spoil: Callable[[Path], None], reason: str) -> None:
    spoil(place)
    with pytest.raises(BackplaneUnavailable, match=reason):
        directory.open_directory(ROOM)


def test_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/self")
    with pytest.raises(BackplaneUnavailable, match="there is no directory /proc/self/"):
        directory.open_directory(ROOM)


def test_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 80)))
    with pytest.raises(BackplaneUnavailable, match="too long for a Unix socket"):
        directory.open_directory(ROOM)


def test_meeting(place: Path) -> None:
    room = directory.open_directory(ROOM)
    (first, first_path), (second, second_path) = directory.listen(room), directory.listen(room)
    with first, second:
        assert directory.others(first_path) == [second_path] and directory.others(second_path) == [first_path]
        peer = directory.connect(second_path)
        assert peer is not None
        with peer:
            accepted, _ = second.accept()
            with accepted:
                directory.check_user(accepted)
                assert not os.get_inheritable(peer.fileno()) and not peer.getblocking()


def test_the_name_of_one_who_has_ended_is_removed(place: Path) -> None:
    room = directory.open_directory(ROOM)
    listener, path = directory.listen(room)
    listener.close()
    assert path.exists() and directory.connect(path) is None and not path.exists()
    assert directory.connect(path) is None


def test_who_takes_no_connection_is_left_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "_BACKLOG", 0)
    listener, path = directory.listen(directory.open_directory(ROOM))
    with listener:
        peers: list[socket.socket | None] = []
        with pytest.raises(BlockingIOError):
            for _ in range(10):
                peers.append(directory.connect(path))
        assert path.exists()
        for peer in peers:
            assert peer is not None
            peer.close()


def test_another_user(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, path = directory.listen(directory.open_directory(ROOM))
    with listener:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(PermissionError, match="process of the user"):
            directory.connect(path)


def test_a_hidden_name_is_removed_when_it_is_old(place: Path) -> None:
    listener, path = directory.listen(directory.open_directory(ROOM))
    with listener:
        young, old = path.parent / ".1-young", path.parent / ".1-old"
        for hidden in (young, old):
            hidden.touch()
        os.utime(old, (time.time() - 100,) * 2)
        assert directory.others(path) == [] and young.exists() and not old.exists()


def test_no_socket_to_be_had(place: Path) -> None:
    room = directory.open_directory(ROOM)
    room.rmdir()
    with pytest.raises(BackplaneUnavailable, match="there is no socket in"):
        directory.listen(room)


def test_a_socket_has_the_name_of_its_process(tmp_path: Path) -> None:
    listener, path = directory.listen(tmp_path)
    with listener:
        assert directory.process_of(path.name) == os.getpid()
    assert [directory.process_of(name) for name in ("", "x-1", "-5", "²-a")] == [0] * 4
