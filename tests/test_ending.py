"""How connections end: each row of the table of wsthread.ending, and what peers and applications see of it."""

from __future__ import annotations

import threading

import pytest
from peer import TIMEOUT, Connect, Recorder, connect, run_handler, sender_of
from servers import wait_until

from wsthread import Connection, ConnectionClosed, Opcode, State

__all__ = ["connect"]


def test_we_close_from_another_thread(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    assert recorder.connected.wait(TIMEOUT)
    conn.close(4001, "kicked")
    conn.close(4002, "the first one counts")
    assert conn.state is State.CLOSING
    assert peer.read() == (Opcode.CLOSE, b"\x0f\xa1kicked")
    peer.send(Opcode.TEXT, b"what comes now is dropped")
    peer.close_frame(4001)
    assert peer.at_eof()
    assert recorder.wait_closed() == (4001, "")
    assert recorder.messages == []


def test_we_close_by_returning(connect: Connect) -> None:
    conn, peer = run_handler(connect, lambda conn: None)
    assert peer.read_close() == 1000
    peer.close_frame()
    assert peer.at_eof()
    wait_until(lambda: conn.closed)
    assert conn.close_code == 1000


def test_both_close_at_once(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    assert recorder.connected.wait(TIMEOUT)
    conn.close(1001)
    peer.close_frame(4000, "me too")
    assert peer.read_close() == 1001
    assert peer.at_eof()
    assert recorder.wait_closed() == (4000, "me too")


def test_close_while_sending(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    payload = bytes(20 << 20)
    sender = threading.Thread(target=conn.send, args=(payload,))
    sender.start()
    wait_until(lambda: sender_of(conn).outbox.size)
    conn.close(1001)
    with pytest.raises(ConnectionClosed):
        conn.send("behind the Close")
    assert peer.read() == (Opcode.BINARY, payload)  # What was accepted arrives, then the Close.
    assert peer.read_close() == 1001
    sender.join(TIMEOUT)
    peer.close_frame(1001)
    assert recorder.wait_closed() == (1001, "")


def test_no_answer_to_our_close(connect: Connect) -> None:
    recorder = Recorder(close_timeout=0.2)
    conn, peer = connect(recorder.manager)
    assert recorder.connected.wait(TIMEOUT)
    conn.close(4000)
    assert peer.read_close() == 4000
    code, reason = recorder.wait_closed()
    assert code == 1006
    assert reason is not None and reason.startswith("no answer to Close 4000")
    assert peer.at_eof()


def test_no_answer_to_our_close_while_a_callback_runs(connect: Connect) -> None:
    release = threading.Event()

    def handler(conn: Connection) -> None:
        conn.close(4000)
        release.wait(TIMEOUT)

    conn, peer = run_handler(connect, handler, close_timeout=0.2)
    assert peer.read_close() == 4000
    assert peer.at_eof()
    assert not conn.closed
    release.set()
    wait_until(lambda: conn.closed)
    assert conn.close_code == 1006


def test_terminate(connect: Connect) -> None:
    recorder = Recorder()
    conn, peer = connect(recorder.manager)
    conn.terminate("because")
    conn.terminate("again")
    assert peer.at_eof()
    assert recorder.wait_closed() == (1006, "because")
    conn.close()
    conn.terminate()


def test_terminate_in_a_callback(connect: Connect) -> None:
    recorder = Recorder()

    def cut(conn: Connection, opcode: Opcode, payload: str) -> None:
        recorder.messages.append((opcode, payload))
        conn.terminate()

    recorder.manager.on_message = cut
    _, peer = connect(recorder.manager)
    peer.socket.sendall(b"\x81\x81\0\0\0\0a" * 3)
    assert recorder.wait_closed() == (1006, "terminated")
    assert recorder.messages == [(Opcode.TEXT, "a")]
