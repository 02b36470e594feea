"""Objects as values in a Redis or Valkey server.

The rules that keep it right between processes and hosts:

- An object is one value: a string, or a hash of chunks where it is longer than a string may
  be. It appears, is replaced and disappears in one step of the server.
- What is not an object yet, or is about one, has a name with a colon behind the object's
  (`OBJECT_NAME` has none), and an expiry: a killed writer or claimant leaves nothing.
- All of it is under one prefix. What is deleted on close is only what has such a name.

One server, or one that looks like one: Redis Cluster is not supported.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from proxystore.connectors._base import (
    OBJECT_NAME,
    ConnectorMixin,
    beginning,
    check_claim,
    checked_name,
    new_name,
    translate,
    wrong_key,
)
from proxystore.connectors.exceptions import ConnectorError, StorageFullError
from proxystore.serialize import BytesLike

try:
    import redis
    from redis import exceptions
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from proxystore.connectors._resp import Command, exchange
except ModuleNotFoundError as error:
    if error.name != "redis":
        raise
    raise ImportError(
        "RedisConnector needs the package redis: pip install redis", name="redis"
    ) from error

logger = logging.getLogger(__name__)

PREFIX = "proxystore:"

# A longer object is written in chunks: 512 MiB is the most that a server takes in one value
# (proto-max-bulk-len, unless it was changed).
_LONGEST_VALUE = 512 << 20
# What a server copies at a time is time that it does not answer others. (Measured for 520
# MiB over a Unix socket: put 0.6 s, get 1.0 s; in chunks of 64 MiB 0.7 s and 1.5 s.)
_CHUNK = 4 << 20
# How long chunks without an object stay, in seconds; starts anew with each chunk.
_WRITING = 600

_LAST_PORT = 65535

# Most bytes in one MSET, and about that in the reply to one MGET: a server keeps both
# in memory whole.
_BATCH_BYTES = 64 << 20
# Most keys in one command.
_BATCH_KEYS = 1000

# Longest time that a waiter relies on being woken up, in seconds: the message may be lost with
# a connection, or have come from a writer that may not send any.
_LOOK_EVERY = 1.0

_CLAIM = """
local has = redis.call('GET', KEYS[1])
if has and has ~= ARGV[1] then return has end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class RedisKey(NamedTuple):
    """Key of an object in a `RedisConnector`: its name there, without the prefix."""

    redis_key: str


class RedisServerError(ConnectorError):
    """A Redis server did not do what it was asked to.

    Attributes:
        server: Host and port, or the path of the socket; no credentials.
        operation: What was asked for.
        reason: What the client, or the server, said.
        username: Who asked; None: nobody in particular.
    """

    def __init__(
        self, server: str, operation: str, reason: str, username: str | None = None
    ) -> None:
        super().__init__(server, operation, reason, username)
        self.server = server
        self.operation = operation
        self.reason = reason
        self.username = username

    def __str__(self) -> str:
        return f"cannot {self.operation}: Redis at {self.server} said: {self.reason}"

    __repr__ = Exception.__repr__  # redis-py's says only of which class it is


# Each is redis-py's exception too: code that expects those keeps working.


class RedisConnectionError(RedisServerError, exceptions.ConnectionError):
    """There is no connection to the server, or none any more."""

    def __str__(self) -> str:
        return (
            f"cannot {self.operation}: no connection to Redis at {self.server} ({self.reason}); "
            f"see that the server is up and that this is its address, and try again"
        )


class RedisTimeoutError(RedisConnectionError, exceptions.TimeoutError):
    """The server did not answer in time. It may still do what it was asked to."""

    def __str__(self) -> str:
        return (
            f"cannot {self.operation}: Redis at {self.server} did not answer in time "
            f"({self.reason}); it may be busy or stopped: try again, or set a longer timeout"
        )


class RedisAuthenticationError(RedisConnectionError, exceptions.AuthenticationError):
    """The server does not know the user, or the password is another one."""

    def __str__(self) -> str:
        return (
            f"cannot {self.operation}: Redis at {self.server} does not let "
            f"{_user(self.username)} in ({self.reason}); check username and password"
        )


class RedisPermissionError(RedisServerError, exceptions.NoPermissionError):
    """The user may not do this."""

    def __str__(self) -> str:
        return (
            f"cannot {self.operation}: {_user(self.username)} of Redis at {self.server} may not "
            f"({self.reason}); have the commands, and the keys and channels under the prefix, "
            f"allowed in the ACL"
        )


class RedisResponseError(RedisServerError, exceptions.ResponseError):
    """The server refused a command."""


class RedisFullError(StorageFullError, exceptions.OutOfMemoryError):
    """The server has no memory left for an object; nothing of it was left behind.

    Attributes:
        path: The server, as in `RedisServerError`.
        needed: Length of what was to be stored, in bytes.
        free: 0: the server does not say.
        what: "object" or "claim".
    """

    def __str__(self) -> str:
        if self.what == "claim":
            return (
                f"no room in Redis at {self.path} for a claim on an object: it needs "
                f"{self.needed} bytes, and the server has reached its maxmemory; try again once "
                f"other objects were evicted or acknowledged, here or elsewhere"
            )
        return (
            f"no room in Redis at {self.path}: the object needs {self.needed} bytes, and the "
            f"server has reached its maxmemory; evict objects, or give it more memory"
        )

    __repr__ = Exception.__repr__


def _user(name: str | None) -> str:
    return "the default user" if name is None else f"user {name!r}"


class RedisConnector(ConnectorMixin[RedisKey]):
    """Keeps each object in a value of a Redis server, by the name prefix + key.

    Thread-safe and fork-safe, with a connection for each thread that is using one. Nothing is
    connected before the first use, and a server that was away is used again when it is back.

    Data come back as bytes, or as a `bytearray` from about 32 kB on.

    Objects stored without a prefix, as existing installations do, are found too, unless
    another prefix is set.

    Args:
        hostname: Host of the server. None: localhost.
        port: Its port. None: 6379.
        clear: Whether `close` deletes the objects under the prefix, whoever has stored them.
            Only in the process that made this instance, and never in one that was rebuilt
            for a proxy (see `disown`).
        url: In place of host and port: ``redis://``, ``rediss://`` (TLS) or ``unix://``,
            with options as `redis.from_url` takes them, for instance
            ``unix:///run/redis.sock?db=1`` or ``rediss://host:6380?ssl_ca_certs=/etc/ca.pem``.
        db: Number of the database.
        username: User of the server's access control list. None: its default user.
        password: The user's password. It is in `config`, so that workers can connect, and so
            in every pickled proxy; it is not in `repr`, logs or errors.
        password_env: Name of the environment variable that has the password, wherever this
            connector is made. Then the password is in no configuration or pickle.
        prefix: What the names of all values start with; not empty, or `clear` would delete
            what others have stored.
        timeout: Longest wait for the server to take or to send something, in seconds; a
            large object takes as long as it takes. None, or infinite: no limit.
        client_kwargs: Further arguments of ``redis.StrictRedis``, for instance
            ``{"ssl": True, "ssl_ca_certs": "/etc/ca.pem"}``.

    Raises:
        TypeError: An argument is of another type.
        ValueError: Arguments contradict each other, or the `url`; `url` is none; a number is
            out of range; `prefix` is empty; or there is no environment variable
            `password_env`.
    """

    thread_safe = True

    def __init__(
        self,
        hostname: str | None = None,
        port: int | None = None,
        clear: bool = False,
        *,
        url: str | None = None,
        db: int = 0,
        username: str | None = None,
        password: str | None = None,
        password_env: str | None = None,
        prefix: str = PREFIX,
        timeout: float | None = 30.0,
        client_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(port, str) and port.isdecimal():
            port = int(port)  # out of the environment; redis-py has always taken it
        _check_arguments(port, clear, db, prefix, timeout)
        if url is not None and (hostname is not None or port is not None):
            raise ValueError("give hostname and port, or a url, not both")
        if password is not None and password_env is not None:
            raise ValueError("give password or password_env, not both")
        self.clear = clear
        self.prefix = prefix
        self.timeout = None if timeout == math.inf else timeout
        self.username = username
        self._who = username  # for errors
        self._db = db
        self._url = url
        self._password = password
        self._password_env = password_env
        self._client_kwargs = dict(client_kwargs or {})
        if url is None:
            self.hostname: str | None = "localhost" if hostname is None else hostname
            self.port: int | None = 6379 if port is None else port
            path = self._client_kwargs.get("unix_socket_path")
            self._shown = str(path) if path else f"{self.hostname}:{self.port}"
            self._shown += f"/{db}" if db else ""
        else:
            self.hostname, self.port, self._shown, user = _parts_of(url)
            in_url = _options_of(url)
            if username is not None and user not in (None, username):
                raise ValueError("url has another user than username: give one of them")
            if in_url.has_password and (password is not None or password_env is not None):
                raise ValueError("url has a password, and another one is given: give one of them")
            if db and in_url.db not in (None, db):
                raise ValueError(f"url is for database {in_url.db}, and db={db}: give one of them")
            self._who = user or username
        self._client = self._new_client()
        # Tests put something else in its place, with a handful of methods.
        self._is_real = isinstance(self._client, redis.Redis)
        # Whether to look for objects without a prefix.
        self._bare = prefix == PREFIX
        # What failed puts may have left at a server that did not answer any more.
        self._unwanted: collections.deque[str] = collections.deque()
        self._creator_pid: int | None = os.getpid()

    def _new_client(self) -> Any:
        password = self._password
        if self._password_env is not None:
            password = os.environ.get(self._password_env)
            if password is None:
                raise ValueError(
                    f"the password of Redis at {self._shown} should be in the environment "
                    f"variable {self._password_env!r}, which is not set here"
                )
        options: dict[str, Any] = {
            "socket_timeout": self.timeout,
            # Once more where a connection was lost; never where an answer takes too long.
            "retry": Retry(NoBackoff(), 1, (exceptions.ConnectionError,)),
            "protocol": 2,  # see _resp
            # Threads wait for the server, not for a connection.
            "max_connections": 2**31,
        }
        if self._db:
            options["db"] = self._db
        if self.username is not None:
            options["username"] = self.username
        if password is not None:
            options["password"] = password
        options.update(self._client_kwargs)
        if self._url is None:
            options = {"host": self.hostname, "port": self.port, **options}
            options.setdefault("socket_connect_timeout", self.timeout)
            return redis.StrictRedis(**options)
        if self.hostname is not None:
            options.setdefault("socket_connect_timeout", self.timeout)
        try:
            return redis.StrictRedis.from_url(self._url, **options)
        except ValueError:
            raise _bad_url() from None  # what it says may have the password in it

    def __repr__(self) -> str:
        if self._url is None:
            shown = [f"hostname={self.hostname}", f"port={self.port}"]
            db: int | None = self._db
        else:
            shown = [f"url={self._shown}"]
            # Of TCP's it is in the path.
            db = self._db or (_options_of(self._url).db if self.hostname is None else 0)
        if db:
            shown.append(f"db={db}")
        if self.prefix != PREFIX:
            shown.append(f"prefix={self.prefix!r}")
        if self._who is not None:
            shown.append(f"username={self._who!r}")
        return f"RedisConnector({', '.join(shown)})"

    def config(self) -> dict[str, Any]:
        """Return the keyword arguments that rebuild this connector; `password` is one."""
        config: dict[str, Any]
        if self._url is None:
            config = {"hostname": self.hostname, "port": self.port, "clear": self.clear}
        else:
            config = {"url": self._url, "clear": self.clear}
        for name, value, default in (
            ("db", self._db, 0),
            ("username", self.username, None),
            ("password", self._password, None),
            ("password_env", self._password_env, None),
            ("prefix", self.prefix, PREFIX),
            # TOML has no None: it would be left out, and be 30 seconds when read.
            ("timeout", math.inf if self.timeout is None else self.timeout, 30.0),
            ("client_kwargs", self._client_kwargs, {}),
        ):
            if value != default:
                config[name] = value
        return config

    def disown(self) -> None:
        """Leave deleting to somebody else: `close` deletes only if told to in the call."""
        self._creator_pid = None

    def close(self, clear: bool | None = None) -> None:
        """Close the connections; later use opens new ones.

        Args:
            clear: Delete the objects under the prefix, and nothing else. None: as the
                constructor was told, and only in its process.
        """
        if clear is None:
            clear = self.clear and self._creator_pid == os.getpid()
        try:
            if clear:
                with self._doing("clear"):
                    self._clear()
        finally:
            self._client.close()

    def _clear(self) -> None:
        for names in self._scan():
            ours = [
                name
                for name in names
                if OBJECT_NAME.match(name[len(self.prefix) :].partition(":")[0])
            ]
            if ours:
                _checked(self._run(("UNLINK", *ours)))

    # -- one object

    def new_key(self, obj: bytes | None = None) -> RedisKey:
        """Return a key with no object behind it yet; `obj` is not looked at."""
        return RedisKey(new_name())

    def named_key(self, name: str) -> RedisKey:
        """Return the key for a name of the form ``UUID4`` or ``UUID4.suffix``."""
        return RedisKey(checked_name(name))

    def put(self, obj: BytesLike) -> RedisKey:
        """Store data under a new key and return it.

        Raises:
            RedisConnectionError: The server cannot be reached; a `ConnectorError` and a
                `redis.exceptions.ConnectionError`.
            RedisFullError: It has no memory left; nothing is left behind.
            RedisServerError: It refuses for another reason.
        """
        return self.put_buffers((obj,))

    def put_buffers(self, parts: Sequence[BytesLike]) -> RedisKey:
        """Store the concatenation of `parts`, without joining them; raises as `put`."""
        key = self.new_key()
        size = _size(parts)
        name = self._name(key)
        with self._doing(f"put {size} bytes", size), self._all_or_nothing([name]):
            self._write(name, tuple(parts), size)
        return key

    def set(self, key: RedisKey, obj: BytesLike) -> None:
        """Put an object behind a key, replacing what was there at once; raises as `put`.

        Whoever waits for it is woken up.
        """
        self.set_buffers(key, (obj,))

    def set_buffers(self, key: RedisKey, parts: Sequence[BytesLike]) -> None:
        """Put the concatenation of `parts` behind `key`; see `set`."""
        name = self._name(key)
        size = _size(parts)
        with self._doing(f"set {key[0]!r} to {size} bytes", size):
            self._write(name, tuple(parts), size, ("PUBLISH", name, b""))

    def get(self, key: RedisKey) -> BytesLike | None:
        """Return the data, or None if there is no such key; errors as for `put`.

        Raises:
            TypeError: `key` is no key, as everywhere here.
        """
        name = self._name(key)
        with self._doing(f"get {key[0]!r}"):
            data: BytesLike | None = self._read(name)
            if data is None and self._had_bare_name(key):
                (reply,) = self._run(("GET", key[0]))
                data = self._unless_refused(reply)
            return data

    def peek(self, key: RedisKey, length: int) -> tuple[BytesLike, int] | None:
        """Return the first `length` bytes of the data (or all, if less) and their whole length.

        None if there is no such key; errors as for `put`. Of an object that is stored in
        chunks, whole chunks of 4 MiB are transferred.
        """
        if not self._is_real:
            data = self.get(key)
            return None if data is None else beginning(data, length)
        name = self._name(key)
        with self._doing(f"look into {key[0]!r}"):
            found = self._peek(name, length)
            if found is None and self._had_bare_name(key):
                try:
                    found = self._peek_value(key[0], length)
                except exceptions.NoPermissionError:
                    self._bare = False
                if _is_other_type(found):
                    found = None
            return found  # type: ignore[no-any-return] # replies have no types

    def exists(self, key: RedisKey) -> bool:
        """Say whether there is an object under `key`; errors as for `put`."""
        name = self._name(key)
        with self._doing(f"look for {key[0]!r}"):
            return bool(self._run_on("EXISTS", key, [name]))

    def evict(self, key: RedisKey) -> None:
        """Remove the object, and the claim on it; that it is not there is no error."""
        name = self._name(key)
        with self._doing(f"evict {key[0]!r}"):
            self._run_on("DEL", key, [name, f"{name}:claim"])

    def keys(self, prefix: str = "") -> Iterator[RedisKey]:
        """Yield the key of each stored object whose name starts with `prefix`.

        What is stored or evicted meanwhile may be left out or not. Objects that were
        stored without a prefix are not listed.
        """
        seen: set[str] = set()
        pages = self._scan(prefix)
        while True:
            with self._doing("list the objects"):
                names = next(pages, None)
            if names is None:
                return
            for name in names:
                name = name[len(self.prefix) :]
                if name not in seen and OBJECT_NAME.match(name):
                    seen.add(name)  # the server may give it again
                    yield RedisKey(name)

    # -- several objects

    def put_batch(self, objs: Sequence[BytesLike]) -> list[RedisKey]:
        """Store each item under a new key, all or none; same order; raises as `put`.

        In one round trip, up to 64 MB.
        """
        return self.put_buffers_batch([(obj,) for obj in objs])

    def put_buffers_batch(self, items: Sequence[Sequence[BytesLike]]) -> list[RedisKey]:
        """Store the concatenation of the parts of each item; see `put_batch`."""
        keys = [self.new_key() for _ in items]
        names = [self._name(key) for key in keys]
        sizes = [_size(parts) for parts in items]
        batch: list[Any] = []
        room = _BATCH_BYTES
        with (
            self._doing(f"put a batch of {len(items)}", sum(sizes)),
            self._all_or_nothing(names),
        ):
            for name, parts, size in zip(names, items, sizes, strict=True):
                if size > min(_BATCH_BYTES, _LONGEST_VALUE):
                    self._write(name, tuple(parts), size)
                    continue
                if size > room or len(batch) >= 2 * _BATCH_KEYS:
                    _checked(self._run(("MSET", *batch)))
                    batch.clear()
                    room = _BATCH_BYTES
                batch += name, tuple(parts)
                room -= size
            if batch:
                _checked(self._run(("MSET", *batch)))
        return keys

    def get_batch(self, keys: Sequence[RedisKey]) -> list[BytesLike | None]:
        """Return the data of each key: same length and order, None where missing.

        In one round trip for each 1,000, or less where they are large; in two where some
        are missing.
        """
        found: list[Any] = []
        at, many = 0, _BATCH_KEYS
        with self._doing(f"get a batch of {len(keys)}"):
            while at < len(keys):
                names = [self._name(key) for key in keys[at : at + many]]
                (some,) = _checked(self._run(("MGET", *names)))
                found += some
                at += len(names)
                mean = sum(len(data) for data in some if data is not None) // len(names)
                many = max(1, min(_BATCH_KEYS, _BATCH_BYTES // (mean + 1)))
            missing = [i for i, data in enumerate(found) if data is None]
            for at in range(0, len(missing), _BATCH_KEYS):
                self._get_missing(keys, missing[at : at + _BATCH_KEYS], found)
        return found

    def _get_missing(self, keys: Sequence[RedisKey], places: list[int], found: list[Any]) -> None:
        # MGET has no answer for what is in chunks, and does not know other names.
        count = len(places)
        had_bare_names = [i for i in places if self._had_bare_name(keys[i])]
        replies = self._run(
            *[("EXISTS", self._name(keys[i])) for i in places],
            *[("GET", keys[i][0]) for i in had_bare_names],
        )
        for i, data in zip(had_bare_names, replies[count:], strict=True):
            found[i] = self._unless_refused(data)
        for i, is_chunked in zip(places, _checked(replies[:count]), strict=True):
            if is_chunked:
                found[i] = self._read(self._name(keys[i]))

    # -- waiting and claiming

    def wait(self, key: RedisKey, timeout: float) -> bool:
        """Return True once there is an object under `key`, False if none comes.

        Woken up by `set`, and looks every second all the same. Takes a connection for as long
        as it waits.

        Args:
            key: Of an object that may be there already: then the answer is immediate.
            timeout: Longest wait, in seconds; 0: only look.

        Raises:
            RedisConnectionError: The server is gone, and not back at once.
        """
        deadline = time.monotonic() + timeout
        if self.exists(key):
            return True
        if timeout <= 0:
            return False
        with self._doing(f"wait for {key[0]!r}"), self._messages(self._name(key)) as next_message:
            while True:
                # The first message is the server's word that from now on none is missed.
                left = max(0.0, deadline - time.monotonic())
                next_message(min(left, _LOOK_EVERY))
                if self.exists(key):
                    return True
                if time.monotonic() >= deadline:
                    return False

    @contextlib.contextmanager
    def _messages(self, channel: str) -> Iterator[Callable[[float], None]]:
        """Give a function that waits for a message, or for that many seconds."""
        if not self._is_real:
            yield lambda seconds: time.sleep(min(seconds, 0.05))
            return
        subscription = self._client.pubsub()
        is_allowed = True

        def next_message(seconds: float) -> None:
            nonlocal is_allowed
            if is_allowed:
                try:
                    subscription.get_message(timeout=seconds)
                    return
                except exceptions.NoPermissionError:
                    is_allowed = False
                    logger.warning(
                        "%s of Redis at %s may not subscribe to %r, so waiting for an object "
                        "notices it up to %g s late",
                        *(_user(self._who), self._shown, channel, _LOOK_EVERY),
                    )
            time.sleep(seconds)

        try:
            subscription.subscribe(channel)
            yield next_message
        finally:
            subscription.close()

    def claim(self, key: RedisKey, claimant: str, seconds: float) -> str:
        """Try to claim the object for a time, and return who has it now.

        See `proxystore.connectors.protocols.ClaimableConnector`. The time is kept by the
        server.

        Raises:
            ValueError: `seconds` is not more than 0.
        """
        check_claim(seconds)
        milliseconds = str(math.ceil(seconds * 1000))
        name = f"{self._name(key)}:claim"
        with self._doing(f"claim {key[0]!r}", len(name.encode()) + len(claimant.encode())):
            (has,) = _checked(self._run(("EVAL", _CLAIM, "1", name, claimant, milliseconds)))
        return bytes(has).decode()

    def release(self, key: RedisKey, claimant: str) -> None:
        """End the claim of `claimant`; if somebody else has the object, do nothing."""
        name = f"{self._name(key)}:claim"
        with self._doing(f"release {key[0]!r}"):
            _checked(self._run(("EVAL", _RELEASE, "1", name, claimant)))

    # -- values

    def _name(self, key: RedisKey) -> str:
        # By its class alone: what a proxy's target is, would resolve it.
        if type(key) is not RedisKey and not issubclass(type(key), tuple):
            raise wrong_key(key, RedisKey)
        if not key or not isinstance(key[0], str):
            raise wrong_key(key, RedisKey)
        return self.prefix + key[0]

    def _write(self, name: str, parts: tuple[Any, ...], size: int, *then: Command) -> None:
        """Make `parts` the value of `name`, and run commands that may fail."""
        if size > _LONGEST_VALUE:
            self._write_chunks(name, parts, size, *then)
        else:
            reply, *_ = self._run(("SET", name, parts), *then)
            _checked([reply])

    @contextlib.contextmanager
    def _all_or_nothing(self, names: list[str]) -> Iterator[None]:
        """Delete `names`, which nobody else knows, if this context does not end well.

        That may have to wait until the server is back: then the next put does it.
        """
        try:
            yield
        except BaseException as error:
            self._unwanted.extend(names)
            if not isinstance(error, exceptions.TimeoutError):  # else it would be another wait
                self._delete_unwanted()
            raise
        if self._unwanted:
            self._delete_unwanted()

    def _delete_unwanted(self) -> None:
        names: list[str] = []
        with contextlib.suppress(IndexError):
            while len(names) < _BATCH_KEYS:
                names.append(self._unwanted.popleft())
        if not names:
            return
        try:
            _checked(self._run(("DEL", *names)))
        except exceptions.RedisError:
            self._unwanted.extend(names)

    def _write_chunks(self, name: str, parts: tuple[Any, ...], size: int, *then: Command) -> None:
        token = new_name()
        aside = f"{name}:{token}"
        fields = {"id": token, "size": str(size), "chunk": str(_CHUNK)}
        started = ["HSET", aside, *(word for item in fields.items() for word in item)]
        expires = ("EXPIRE", aside, str(_WRITING))
        try:
            # In one step: without the expiry, it would stay for ever if this process is
            # killed now.
            _checked(self._run(("MULTI",), started, expires, ("EXEC",)))
            for i, chunk in enumerate(_chunks(parts)):
                # The token in the field: a reader of an older object finds no chunk of this one.
                _checked(self._run(("HSET", aside, f"{token}:{i}", chunk), expires))
            replies = self._run(
                ("MULTI",), ("PERSIST", aside), ("RENAME", aside, name), ("EXEC",), *then
            )
            _checked(replies[:4])
        except BaseException as error:
            if not isinstance(error, exceptions.TimeoutError):  # else it would be another wait
                with contextlib.suppress(exceptions.RedisError):
                    self._run(("DEL", aside))
            raise

    def _read(self, name: str) -> Any:
        while True:
            (data,) = self._run(("GET", name))
            if not _is_other_type(data):
                return _checked([data])[0]
            found = self._read_chunks(name)
            if found is not _CHANGED:
                return None if found is None else found[0]

    def _peek(self, name: str, length: int) -> Any:
        while True:
            found = self._peek_value(name, length)
            if not _is_other_type(found):
                return found
            found = self._read_chunks(name, length)
            if found is not _CHANGED:
                return found

    def _peek_value(self, name: str, length: int) -> Any:
        """Return beginning and length of a value, None if there is none, or the error of its type.

        Raises:
            redis.exceptions.NoPermissionError: This user may not see that name.
        """
        last = str(max(length, 1) - 1)  # -1 would be the last of all
        # In one step, so that both are the same object's.
        *queued, found = self._run(
            ("MULTI",),
            ("GETRANGE", name, "0", last),
            ("STRLEN", name),
            ("EXISTS", name),  # else what is empty would be missing
            ("EXEC",),
        )
        _checked(queued)
        if isinstance(found, list) and _is_other_type(found[0]):
            return found[0]
        ((data, size, is_there),) = _checked([found])
        return (data[:length], size) if is_there else None

    def _read_chunks(self, name: str, most: int | None = None) -> Any:
        """Return the data and their length.

        Args:
            name: Of the value.
            most: How much of the beginning to return, in bytes. None: all.

        Returns:
            None if there is no such value, or `_CHANGED` if it is not in chunks.
        """
        (found,) = self._run(("HMGET", name, "id", "size", "chunk"))
        if _is_other_type(found):
            (kind,) = _checked(self._run(("TYPE", name)))
            if kind in (b"string", b"hash", b"none"):
                return _CHANGED  # it was replaced meanwhile
        ((token, *numbers),) = _checked([found])
        if token is None:
            return None
        size, length = map(int, numbers)
        data = bytearray(size if most is None else min(size, most))
        with memoryview(data) as view:
            for i, at in enumerate(range(0, len(data), length)):
                place = view[at : at + length]
                (chunk,) = self._run(("HGET", name, f"{token.decode()}:{i}"), into=place)
                if chunk is None or _is_other_type(chunk):
                    return _CHANGED
                _checked([chunk])
                if chunk is not place:
                    place[:] = memoryview(chunk)[: place.nbytes if most is not None else None]
        return data, size

    def _scan(self, prefix: str = "") -> Iterator[list[str]]:
        """Yield names that start with the prefixes, as many at a time as the server gives."""
        pattern = re.sub(r"([*?\[\]^\\])", r"\\\1", self.prefix + prefix) + "*"
        cursor: str | bytes = "0"
        while True:
            ((cursor, names),) = _checked(
                self._run(("SCAN", cursor, "MATCH", pattern, "COUNT", "1000"))
            )
            yield [name.decode(errors="replace") for name in names]
            if cursor == b"0":
                return

    # -- commands

    def _run(self, *commands: Command, into: memoryview | None = None) -> list[Any]:
        if self._is_real:
            return exchange(self._client, *commands, into=into)
        return self._run_by_methods(*commands)

    def _run_by_methods(self, *commands: Any) -> list[Any]:
        """Do the same with methods that any stand-in for redis-py's client has."""
        replies: list[Any] = []
        for command, *arguments in commands:
            values = [b"".join(x) if isinstance(x, tuple) else x for x in arguments]
            if command == "MSET":
                replies.append(self._client.mset(dict(zip(values[::2], values[1::2], strict=True))))
            elif command == "MGET":
                replies.append(list(self._client.mget(values)))
            elif command == "EXISTS":
                replies.append(sum(bool(self._client.exists(name)) for name in values))
            elif command == "DEL":
                replies.append([self._client.delete(name) for name in values])
            elif command in ("GET", "SET"):
                replies.append(getattr(self._client, command.lower())(*values))
            elif command == "PUBLISH":
                replies.append(0)
            elif command == "SCAN":
                logger.warning("%r cannot list its names: nothing is cleared", self._client)
                replies.append([b"0", []])
            else:
                raise NotImplementedError(f"{self._client!r} stands in for Redis without {command}")
        return replies

    def _had_bare_name(self, key: RedisKey) -> bool:
        """Say whether an object of this key may have been stored without a prefix."""
        return self._bare and OBJECT_NAME.match(key[0]) is not None

    def _run_on(self, command: str, key: RedisKey, names: list[str]) -> int:
        """Run a command on names, and on the one that the object may have without a prefix."""
        if self._had_bare_name(key):
            (reply,) = self._run((command, *names, key[0]))
            if not isinstance(reply, exceptions.NoPermissionError):
                return _checked([reply])[0]  # type: ignore[no-any-return]
            self._bare = False  # this user sees no more than the prefix
        return _checked(self._run((command, *names)))[0]  # type: ignore[no-any-return]

    def _unless_refused(self, reply: Any) -> Any:
        """Return the value of a name without a prefix; None if this user may not see it."""
        if isinstance(reply, exceptions.NoPermissionError):
            self._bare = False
            return None
        return None if _is_other_type(reply) else _checked([reply])[0]

    def _doing(self, operation: str, size: int = 0) -> contextlib.AbstractContextManager[None]:
        """Have redis-py's errors raised as ours, inside this context."""
        return translate(exceptions.RedisError, lambda error: self._error(error, operation, size))

    def _error(self, error: Exception, operation: str, size: int) -> ConnectorError:
        if isinstance(error, exceptions.OutOfMemoryError):
            what = "claim" if operation.startswith("claim ") else "object"
            return RedisFullError(self._shown, size, 0, what)
        reason = str(error)
        if isinstance(error, exceptions.TimeoutError):
            reason += f"; timeout={self.timeout:g} s" if self.timeout else ""
        for foreign, ours in _OURS:
            if isinstance(error, foreign):
                return ours(self._shown, operation, reason, self._who)
        return RedisServerError(self._shown, operation, reason, self._who)


# The first that fits.
_OURS: tuple[tuple[type[exceptions.RedisError], type[RedisServerError]], ...] = (
    (exceptions.AuthenticationError, RedisAuthenticationError),
    (exceptions.TimeoutError, RedisTimeoutError),
    (exceptions.ConnectionError, RedisConnectionError),
    (exceptions.NoPermissionError, RedisPermissionError),
    (exceptions.ResponseError, RedisResponseError),
)

_CHANGED = object()


def _bad_url() -> ValueError:
    return ValueError(
        "url must look like redis://user:password@host:6379/0, rediss://... (TLS) or "
        "unix:///path/of/the/socket, with characters such as / : @ # ? in a user's name or "
        "password written as %2F and the like; it is not shown here, since it may have a "
        "password in it"
    )


def _parts_of(url: str) -> tuple[str | None, int | None, str, str | None]:
    """Return host and port of a URL, None for a socket; the URL without credentials; the user."""
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:
        raise _bad_url() from None
    user = unquote(parts.username) if parts.username else None
    if parts.scheme == "unix" and parts.path:
        return None, None, f"unix://{parts.path}", user
    if parts.scheme not in ("redis", "rediss"):
        raise _bad_url()
    hostname = parts.hostname or "localhost"
    shown = f"[{hostname}]" if ":" in hostname else hostname
    return hostname, port, f"{parts.scheme}://{shown}:{port}{parts.path.rstrip('/')}", user


class _InUrl(NamedTuple):
    db: int | None
    has_password: bool


def _options_of(url: str) -> _InUrl:
    """Return what a URL says that arguments may contradict."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    number = query.get("db", [parts.path.strip("/") if parts.scheme != "unix" else ""])[0]
    return _InUrl(
        db=int(number) if number.isdecimal() else None,
        has_password=bool(parts.password) or "password" in query,
    )


def _check_arguments(port: Any, clear: Any, db: Any, prefix: Any, timeout: Any) -> None:
    """Raise `TypeError` or `ValueError` for what would do harm, or fail at the first use only."""
    for name, value in (("port", port), ("db", db)):
        if type(value) is bool or not (value is None or hasattr(type(value), "__index__")):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
    if port is not None and not 1 <= port <= _LAST_PORT:
        raise ValueError(f"port must be from 1 to {_LAST_PORT}, got {port}")
    if db is None or db < 0:
        raise ValueError(f"db must be 0 or more, got {db}")
    if not isinstance(clear, bool):
        raise TypeError(f"clear must be True or False, got {clear!r}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be text, got {prefix!r}; leave it out for {PREFIX!r}")
    if not prefix:
        raise ValueError(
            f"prefix is empty: clear would delete what others have stored in the database; leave "
            f"it out for {PREFIX!r}, with which objects without a prefix are found too"
        )
    if isinstance(timeout, bool) or not isinstance(timeout, (Real, type(None))):
        raise TypeError(f"timeout must be a number of seconds, or None, got {timeout!r}")
    if timeout is not None and not float(timeout) > 0:
        raise ValueError(f"timeout must be more than 0 seconds, or None, got {timeout}")


def _checked(replies: list[Any]) -> list[Any]:
    """Return replies, or raise the first error among them."""
    for reply in replies:
        if isinstance(reply, list):
            _checked(reply)
        elif isinstance(reply, Exception):
            raise reply
    return replies


def _is_other_type(reply: Any) -> bool:
    return isinstance(reply, exceptions.ResponseError) and str(reply).startswith("WRONGTYPE")


def _size(parts: Sequence[BytesLike]) -> int:
    return sum(memoryview(part).nbytes for part in parts)


def _chunks(parts: Sequence[BytesLike]) -> Iterator[tuple[memoryview, ...]]:
    """Yield the pieces of each chunk; no byte is copied."""
    chunk: list[memoryview] = []
    room = _CHUNK
    for part in parts:
        view = memoryview(part)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        while view.nbytes >= room:
            yield (*chunk, view[:room])
            view = view[room:]
            chunk.clear()
            room = _CHUNK
        if view.nbytes:
            chunk.append(view)
            room -= view.nbytes
    if chunk:
        yield tuple(chunk)
