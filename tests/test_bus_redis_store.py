"""The scripts and commands against a real Redis, and connections of each kind."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from redis_servers import RedisServer, free_port, running
from servers import wait_until

from wsthread.bus.fields import START, decode
from wsthread.bus.publishing import Batch, Item
from wsthread.bus.redis_store import Address, Answer, Store

CLUSTER = ("--cluster-enabled", "yes", "--cluster-port")
A, B = "a" * 16, "b" * 16


def store_of(server: RedisServer, name: str | None = None, query: str = "", **options: Any) -> Store:
    return Store(Address(server.url + query, options), name or secrets.token_hex(4), 5.0)


def items(*numbers: int, age: float = 0.0) -> list[Item]:
    return [Item(number, "m", b'{"to":null}', b"%d" % number, 100.0 - age, 50.0) for number in numbers]


def publish(
    store: Store, publisher: str, base: int, *numbers: int, forced: bool = False, length: int = 100, seconds: int = 60,
    age: float = 0.0,
) -> int:
    """Return the number that the server has then."""
    return store.publish(publisher, Batch(base, forced, items(*numbers, age=age)), length, seconds, 100.0).have


def numbers_in(store: Store) -> list[tuple[str, int, bool]]:
    """Return the publisher's first letter, the number and whether it is forced, of each entry."""
    found = [decode(*one, 1000) for one in store.read(START, 1000, 0.01)]
    places = [START, *(one.id for one in found)]
    assert all(one.before == before for one, before in zip(found[1:], places[1:]))
    return [(one.publisher[:1], one.number, one.is_forced) for one in found]


@pytest.mark.parametrize("query", ["", "?protocol=2", "?protocol=3", "?decode_responses=true&max_connections=5"])
def test_script(shared_redis: RedisServer, query: str) -> None:
    store = store_of(shared_redis, query=query)
    assert publish(store, A, 0) == 0
    assert numbers_in(store) == []
    assert publish(store, A, 0, 1, 2) == 2
    assert publish(store, A, 0, 1, 2, 3) == 3  # The answer was lost, say.
    assert publish(store, B, 0, 1) == 1
    assert publish(store, A, 5, 6) == 3  # It waits to be told of the hole.
    assert publish(store, A, 5, 6, forced=True) == 6
    assert publish(store, A, 5, 7, forced=True) == 7
    assert numbers_in(store) == [
        ("a", 1, False), ("a", 2, False), ("a", 3, False), ("b", 1, False), ("a", 6, True), ("a", 7, False)]
    assert store.look(True).numbers == {A: 7, B: 1}
    view = store.look(False)
    assert view.numbers == {} and abs(view.time / 1000 - time.time()) < 60
    back = [decode(*one, 1000) for one in store.read_back(view.end, 2)]
    assert ([one.number for one in back], back[0].id, store.read_back(START, 2)) == ([7, 6], view.end, [])
    assert (back[0].payload, back[0].header, back[0].wall, back[0].age) == (b"7", {"to": None}, 50.0, 0.0)
    store.close()


def test_age(shared_redis: RedisServer) -> None:
    store = store_of(shared_redis)
    publish(store, A, 0, 1, age=0.05)
    publish(store, A, 1, 2, age=1.5)
    assert [decode(*one, 1000).age for one in store.read(START, 10, 0.01)] == [0.0, 1.5]
    store.close()


@pytest.mark.parametrize(("deleted", "have"), [([""], 0), ([":at"], 0), ([":heard"], 2), (["", ":at", ":heard"], 0)])
def test_lost_keys(shared_redis: RedisServer, deleted: list[str], have: int) -> None:
    """Without the stream the numbers mean nothing."""
    name = secrets.token_hex(4)
    store = store_of(shared_redis, name)
    publish(store, A, 0, 1, 2)
    shared_redis.call("DEL", *(f"wsthread:{{{name}}}{key}" for key in deleted))
    assert publish(store, A, 2, 3) == (3 if have else 0)
    if not have:
        assert publish(store, A, 0, 1, 2, 3) == 3
    store.close()


def test_number_without_a_stream(shared_redis: RedisServer) -> None:
    """A publisher that has nothing to send again leaves its number all the same."""
    name = secrets.token_hex(4)
    store = store_of(shared_redis, name)
    publish(store, A, 0, 1, 2)
    shared_redis.call("FLUSHALL")
    assert [publish(store, A, 2), publish(store, A, 2, forced=True), publish(store, A, 2)] == [0, 2, 2]
    assert publish(store, B, 0, 1) == 1
    assert (store.look(True).numbers, publish(store, A, 2, 3)) == ({A: 2, B: 1}, 3)
    store.close()


def test_bounds(shared_redis: RedisServer) -> None:
    """It does not grow, and nothing stays."""
    name = secrets.token_hex(4)
    store = store_of(shared_redis, name)
    for base in range(0, 1000, 100):
        publish(store, A, base, *range(base + 1, base + 101), length=100)
    assert 100 <= shared_redis.call("XLEN", f"wsthread:{{{name}}}") < 300
    end = store.look(False).end
    ttls = [shared_redis.call("TTL", f"wsthread:{{{name}}}{key}") for key in ("", ":at", ":heard")]
    assert all(0 < ttl <= 120 for ttl in ttls)
    assert not shared_redis.call("EXISTS", *[f"wsthread:{{other}}{key}" for key in ("", ":at", ":heard")])
    time.sleep(2.1)
    publish(store, A, 1000, seconds=1)  # A sign of life trims what is too old.
    assert store.read(START, 10, 0.01) == []
    assert store.look(False).end == end
    publish(store, A, 1000, 1001)
    assert decode(*store.read(START, 10, 0.01)[0], 1000).before == end
    store.close()


def test_publishers_are_forgotten(shared_redis: RedisServer) -> None:
    store = store_of(shared_redis)
    publish(store, A, 0, 1)
    batch = Batch(0, False, [])
    assert store.publish(B, batch, 100, 60, 100.0) == Answer(0, 2)
    assert store.publish(A, batch, 100, 60, 100.0, is_leaving=True) == Answer(1, 1)
    assert store.look(True).numbers == {A: 1}  # Its entries are in the stream.
    store.publish(B, batch, 100, 5, 100.0)
    assert store.look(True).numbers == {}
    store.close()


def test_no_memory(own_redis: RedisServer) -> None:
    """All of a batch is refused, so that numbers and entries fit each other; signs of life are taken."""
    store = store_of(own_redis)
    publish(store, A, 0, 1)
    assert store.eviction() is None
    own_redis.call("CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction")
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        publish(store, A, 1, 2, 3)
    assert (publish(store, A, 1), store.eviction()) == (1, None)
    own_redis.call("CONFIG", "SET", "maxmemory", "1gb", "maxmemory-policy", "allkeys-lru")
    assert (publish(store, A, 1, 2, 3), store.eviction()) == (3, "allkeys-lru")
    store.close()


def test_info_may_be_forbidden(own_redis: RedisServer) -> None:
    """A user with no more rights than are documented."""
    rights = (
        "~wsthread:* +eval +evalsha +xadd +xtrim +xread +xrevrange +xinfo +hget +hset +hexists +hgetall +hdel +zadd "
        "+zrem +zcount +zrangebyscore +expire +exists +del +time")
    own_redis.call("ACL", "SETUSER", "chat", "on", ">se%cret", *rights.split())
    store = Store(Address(f"redis://chat:se%25cret@127.0.0.1:{own_redis.port}", {}), "x", 5.0)
    assert (publish(store, A, 0, 1), store.eviction(), len(store.read(START, 9, 0.01))) == (1, None, 1)
    assert store.look(True).numbers == {A: 1}
    store.close()


def test_passwords_are_hidden() -> None:
    address = Address("redis+sentinel://u:s3cret@h/main?sentinel_password=hush", {})
    assert address.label == "redis+sentinel://h/main"
    assert address.hide_password("with s3cret and hush") == "with *** and ***"
    assert Address("redis://h", {}).hide_password("text") == "text"


def test_without_redis_py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.connection", None)
    with pytest.raises(ImportError, match=r"pip install 'wsthread\[redis\]'"):
        Address("redis://h", {})


def test_unix_socket(redis_program: str) -> None:
    with running(redis_program, "--unixsocket", "socket") as server:
        store = Store(Address(f"unix://{server.directory}/socket", {}), "x", 5.0)
        assert publish(store, A, 0, 1) == 1
        store.close()


def test_tls(redis_program: str, need_program: Callable[[str], str], tmp_path: Path) -> None:
    """With a password, and a certificate that is checked."""
    key, certificate, port = tmp_path / "key.pem", tmp_path / "certificate.pem", free_port()
    subprocess.run(
        [need_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True, timeout=60)
    with running(
            redis_program, "--tls-port", f"{port}", "--tls-cert-file", f"{key.parent}/certificate.pem",
            "--tls-key-file", f"{key}", "--tls-ca-cert-file", f"{certificate}", "--tls-auth-clients", "no") as server:
        server.call("CONFIG", "SET", "requirepass", "p@ss/word")
        url = f"rediss://:p%40ss%2Fword@127.0.0.1:{port}"
        store = Store(Address(f"{url}?ssl_ca_certs={certificate}", {}), "x", 5.0)
        assert publish(store, A, 0, 1) == 1
        store.close()
        with pytest.raises(redis.ConnectionError, match="(?i)certificate"):
            Store(Address(url, {}), "x", 5.0).look(False)


def test_nobody_listens() -> None:
    store = Store(Address(f"redis://127.0.0.1:{free_port()}", {}), "x", 1.0)
    with pytest.raises(redis.ConnectionError):
        store.look(False)
    store.close()


def test_a_stopped_server_takes_no_longer_than_the_timeout(own_redis: RedisServer) -> None:
    store = Store(Address(own_redis.url + "?socket_timeout=50&retry_on_timeout=true", {}), "x", 0.3)
    store.look(False)
    own_redis.pause()
    begun = time.monotonic()
    with pytest.raises(redis.TimeoutError):
        store.look(False)
    with pytest.raises((redis.TimeoutError, redis.ConnectionError)):
        store.look(False)
    assert time.monotonic() - begun < 2
    own_redis.resume()
    assert store.look(False).end == START
    store.close()


def test_cluster(redis_program: str) -> None:
    """Two nodes; the one that was named has none of the slots."""
    bus = free_port()
    with running(redis_program, *CLUSTER, f"{free_port()}") as one, running(
            redis_program, *CLUSTER, f"{bus}") as other:
        other.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        one.call("CLUSTER", "MEET", "127.0.0.1", other.port, bus)
        for node in (one, other):
            wait_until(lambda: node.call("CLUSTER INFO")["cluster_state"] == "ok")
        nobody = free_port()
        store = Store(Address(f"redis+cluster://127.0.0.1:{nobody},127.0.0.1:{one.port}", {}), "x", 5.0)
        assert publish(store, A, 0, 1) == 1
        assert other.call("EXISTS", "wsthread:{x}") == 1
        store.close()
        with pytest.raises(redis.ConnectionError):
            Store(Address(f"redis+cluster://127.0.0.1:{nobody}", {}), "x", 5.0).look(False)
