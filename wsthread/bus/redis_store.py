"""The stream of one manager in a Redis: one connection, and the few commands that are needed.

Keys, all in one slot of a cluster: ``wsthread:{NAME}`` is the stream; ``…:at`` is a hash, for each publisher the number
of its last entry; ``…:heard`` is a sorted set of publishers by when they were last heard of, in the server's seconds.
The first two change in one step only, in a script. So they fit each other after whatever restart or failover. All
expire when nobody is there any more.

A connection is one of redis-py's, without its pool and without its retries: whoever calls knows better what to do. It
is opened by the first command, and closed by any error. After that the next command asks again where the server is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from . import redis_url
from .fields import START, Id, format_id, parse_id
from .publishing import Batch

#: An entry as it comes: its id, then names and values in turn.
Raw: TypeAlias = tuple[bytes, Sequence[bytes]]

_LAST = """
local function last_id(stream)
  if redis.call('EXISTS', stream) == 0 then return '0-0' end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end
"""
# ARGV: publisher, base, 1 to force, 1 to leave, length and seconds of the stream; then for each entry number, kind,
# header, payload, time and age.
_PUBLISH = _LAST + """
local stream, at, heard = KEYS[1], KEYS[2], KEYS[3]
local publisher, base, seconds = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[6])
local last = last_id(stream)
if last == '0-0' and redis.call('HEXISTS', at, '=') == 1 then  -- The stream is lost, so its numbers mean nothing.
  redis.call('DEL', at)
end
local have = tonumber(redis.call('HGET', at, publisher) or '0')
local now = tonumber(redis.call('TIME')[1])
-- What needs memory comes first: once a script has written, Redis lets it go beyond its maxmemory.
if have >= base or ARGV[3] == '1' then
  local forced = have < base
  if forced then
    have = base
    redis.call('HSET', at, publisher, string.format('%.0f', have))
  end
  for i = 7, #ARGV, 6 do
    local number = tonumber(ARGV[i])
    if number > have then
      local entry = {'XADD', stream, 'MAXLEN', '~', ARGV[5], '*', 'v', '1', 'p', publisher, 'n', ARGV[i], 'b', last,
        'k', ARGV[i + 1], 'h', ARGV[i + 2], 'd', ARGV[i + 3], 't', ARGV[i + 4]}
      if ARGV[i + 5] ~= '0' then
        entry[#entry + 1] = 'a'
        entry[#entry + 1] = ARGV[i + 5]
      end
      if forced then
        entry[#entry + 1] = 'f'
        entry[#entry + 1] = '1'
        forced = false
      end
      last = redis.call(unpack(entry))
      have = number
    end
  end
  if #ARGV > 6 then
    redis.call('HSET', at, '=', '1', publisher, string.format('%.0f', have))
  end
end
redis.call('XTRIM', stream, 'MINID', #ARGV > 6 and '~' or '=', string.format('%.0f', (now - seconds) * 1000))
redis.call('ZADD', heard, ARGV[4] == '1' and now - 60 or now, publisher)
for _, one in ipairs(redis.call('ZRANGEBYSCORE', heard, '-inf', now - 2 * seconds, 'LIMIT', 0, 100)) do
  redis.call('ZREM', heard, one)
  redis.call('HDEL', at, one)
end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, 2 * seconds) end
return {have, redis.call('ZCOUNT', heard, now - 10, '+inf')}
"""
# ARGV: 1 to get the numbers.
_LOOK = _LAST + """
local time = redis.call('TIME')
local numbers = ARGV[1] == '1' and redis.call('HGETALL', KEYS[2]) or {}
return {last_id(KEYS[1]), time[1] * 1000 + math.floor(time[2] / 1000), numbers}
"""


class Script(NamedTuple):
    """A script, and what Redis knows it by."""

    text: str
    digest: str

    @classmethod
    def of(cls, text: str) -> Script:
        """Return the script with a text."""
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


PUBLISH, LOOK = Script.of(_PUBLISH), Script.of(_LOOK)


class View(NamedTuple):
    """What the server tells at one moment.

    Attributes:
        end: the last id that it has given in the stream.
        time: in milliseconds.
        numbers: the last one of each publisher, if that was asked for.
    """

    end: Id
    time: int
    numbers: dict[str, int]


class Answer(NamedTuple):
    """What the server tells a publisher.

    Attributes:
        have: the number of its last entry that the server has.
        heard: how many publishers were heard of lately, with this one.
    """

    have: int
    heard: int


class Address:
    """Which Redis, and how to connect to it. It connects to nothing by itself; any thread may use it.

    Args:
        url: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://.
        options: for redis-py's connections, such as ``ssl_ca_certs`` or ``credential_provider``.

    Attributes:
        label: what to call it where people read it; without a password.

    Raises:
        ImportError: redis-py is not installed.
        ValueError: the URL is none.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        try:
            from redis.connection import parse_url
        except ImportError as error:
            raise ImportError("messages over Redis need redis-py: pip install 'wsthread[redis]'") from error
        self._target = redis_url.parse(url)
        self.label = self._target.label
        parse: Callable[[str], dict[str, Any]] = parse_url  # It has no types in older versions.
        self._options: dict[str, Any] = {**parse(self._target.url), **options}
        for one in ("decode_responses", "encoding", "encoding_errors", "max_connections", "timeout"):
            self._options.pop(one, None)  # They are for other uses of the same URL.
        self._connection_class = self._options.pop("connection_class", None)

    def connect(self, key: str, timeout: float) -> Any:
        """Return a connection to the server that has a key.

        Args:
            key: the key.
            timeout: seconds for each step.

        Raises:
            Exception: whatever redis-py raises.
        """
        target = self._target
        if target.service is not None:
            return self._connect_to_primary(target.service, timeout)
        if target.nodes:
            return self._connect_to_node(key, timeout)
        return self._open({}, timeout)

    def hide_password(self, text: str) -> str:
        """Return what an error tells without passwords."""
        for secret in (self._options.get("password"), self._target.sentinel_credentials[1]):
            if secret:
                text = text.replace(str(secret), "***")
        return text

    def _open(self, place: Mapping[str, Any], timeout: float) -> Any:
        from redis import Connection
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        kind = self._connection_class or Connection
        connection = kind(**{
            **self._options, **place, "socket_timeout": timeout, "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0), "retry_on_timeout": False, "retry_on_error": [],
            "health_check_interval": 0, "decode_responses": False})
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _connect_to_primary(self, service: str, timeout: float) -> Any:
        """Ask the sentinels in turn; the first one that answers is not always the one that knows best."""
        username, password = self._target.sentinel_credentials
        failure: Exception = ConnectionError(f"no sentinel knows {service!r}")
        for host, port in self._target.nodes:
            try:
                sentinel = self._open(
                    {"host": host, "port": port, "username": username, "password": password, "db": 0,
                     "credential_provider": None}, min(timeout, 1.0))
                try:
                    found = call(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
                finally:
                    sentinel.disconnect()
                if not found:
                    continue
                connection = self._open({"host": found[0].decode(), "port": int(found[1])}, timeout)
                try:
                    role = call(connection, "ROLE")[0]
                    if role != b"master":
                        raise ConnectionError(f"{found[0].decode()}:{int(found[1])} is no primary, but {role!r}")
                except BaseException:
                    connection.disconnect()
                    raise
                return connection
            except Exception as error:  # As many as redis-py has; the next one may do.
                failure = error
        raise failure

    def _connect_to_node(self, key: str, timeout: float) -> Any:
        """Ask nodes in turn for the key, which tells which one has it."""
        from redis.exceptions import ResponseError

        failure: Exception = ConnectionError("no node of the cluster answers")
        for host, port in self._target.nodes:
            try:
                for _ in range(5):  # A slot may move while we ask.
                    connection = self._open({"host": host, "port": port}, timeout)
                    try:
                        call(connection, "EXISTS", key)
                        return connection
                    except ResponseError as error:
                        connection.disconnect()
                        moved = redis_url.moved_to(str(error))
                        if moved is None:
                            raise
                        host, port = moved[0] or host, moved[1]
                    except BaseException:
                        connection.disconnect()
                        raise
            except Exception as error:
                failure = error
        raise failure


def call(connection: Any, *words: Any) -> Any:
    """Return what a server answers to a command; strings are bytes.

    Raises:
        Exception: whatever redis-py raises.
    """
    connection.send_command(*words)
    return connection.read_response()


class Store:
    """The stream of the managers of a name. One thread uses it; any may close it.

    Args:
        address: of the Redis.
        name: the managers'.
        timeout: seconds that the server may take to answer.

    Attributes:
        timeout: the same; it counts from the next connection on.
    """

    def __init__(self, address: Address, name: str, timeout: float) -> None:
        self.timeout = timeout
        self._address = address
        self._key = redis_url.key_of(name)
        self._connection: Any = None

    def publish(
        self, publisher: str, batch: Batch, length: int, seconds: int, now: float, is_leaving: bool = False,
    ) -> Answer:
        """Add entries, if the server has what the batch builds on.

        Args:
            publisher: whose.
            batch: the entries.
            length: how many entries the stream has, at most and about.
            seconds: how old they are, at most and about.
            now: the time, in seconds on the monotonic clock.
            is_leaving: whether the publisher ends.
        """
        words: list[Any] = [publisher, batch.base, int(batch.is_forced), int(is_leaving), length, seconds]
        for item in batch.items:
            age = int((now - item.published) * 1000)
            words += (
                item.number, item.kind, item.header, item.payload, int(item.wall * 1000), age if age >= 100 else 0)
        have, heard = self._run(PUBLISH, words)
        return Answer(int(have), int(heard))

    def look(self, with_numbers: bool) -> View:
        """Return what is there now."""
        end, time, flat = self._run(LOOK, [int(with_numbers)])
        numbers = {one.decode(errors="replace"): int(number) for one, number in zip(flat[::2], flat[1::2])}
        numbers.pop("=", None)
        return View(parse_id(end), int(time), numbers)

    def read(self, place: Id, count: int, block: float) -> list[Raw]:
        """Return entries behind a place, so many at most; wait so many seconds for the first."""
        answer = self._call(
            "XREAD", "COUNT", count, "BLOCK", max(1, int(block * 1000)), "STREAMS", self._key, format_id(place))
        if not answer:
            return []
        streams = answer.values() if isinstance(answer, dict) else [one[1] for one in answer]
        return [(id, fields or ()) for stream in streams for id, fields in stream]

    def read_back(self, place: Id, count: int) -> list[Raw]:
        """Return the entries up to a place, so many at most; the last one comes first."""
        if place == START:
            return []
        return [(id, fields or ()) for id, fields in self._call(
            "XREVRANGE", self._key, format_id(place), "-", "COUNT", count)]

    def eviction(self) -> str | None:
        """Return how the server makes room when its memory is full; None when it does not, or does not tell."""
        from redis.exceptions import ResponseError

        try:
            text = self._call("INFO", "memory")
        except ResponseError:  # It may not be allowed.
            return None
        lines = dict(line.partition(":")[::2] for line in text.decode(errors="replace").split("\r\n"))
        policy = lines.get("maxmemory_policy", "noeviction")
        return None if policy == "noeviction" or lines.get("maxmemory", "0") == "0" else policy

    def close(self) -> None:
        """Close the connection; a command that waits for it in another thread fails."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _run(self, script: Script, words: Sequence[Any]) -> Any:
        from redis.exceptions import NoScriptError

        keys = (self._key, f"{self._key}:at", f"{self._key}:heard")
        try:
            return self._call("EVALSHA", script.digest, len(keys), *keys, *words)
        except NoScriptError:  # The server has restarted, or is another one.
            return self._call("EVAL", script.text, len(keys), *keys, *words)

    def _call(self, *words: Any) -> Any:
        if self._connection is None:
            self._connection = self._address.connect(self._key, self.timeout)
        connection = self._connection
        try:
            return call(connection, *words)
        except Exception:
            self.close()
            raise
