"""Commands to a Redis server and its replies, without a copy of what is large.

redis-py takes a value in one piece only, and reads a reply of 100 MB in four copies.
Here a value goes out in the pieces it has and comes in where it stays. Measured at
100 MB over a Unix socket: SET of an object in two pieces 95 ms (joined first, with
redis-py, 165 ms); GET 150 ms (360 ms).

Connections are redis-py's, out of its pool: it does address, TLS, login and forks. What is
used of them that redis-py does not promise is the attribute ``_sock`` (there in all versions
up to 8.1; without it, redis-py reads the replies). The pool has no connection with unread
replies, and in version 2 of the protocol (RESP2) a server sends nothing but replies, one for
each command.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import Any

from redis import exceptions

from proxystore.serialize import BytesLike

# An argument of a command; a tuple: the pieces of one value.
Argument = str | bytes | tuple[BytesLike, ...]
Command = Sequence[Argument]

# From this length on a piece of memory is sent by itself, and received where it stays:
# below, copying costs less than another system call.
_LARGE = 32 * 1024

# By the first word of an error reply; redis-py has the same classes for them.
_ERRORS: dict[bytes, type[exceptions.RedisError]] = {
    b"LOADING": exceptions.BusyLoadingError,
    b"NOAUTH": exceptions.AuthenticationError,
    b"NOPERM": exceptions.NoPermissionError,
    b"OOM": exceptions.OutOfMemoryError,
    b"READONLY": exceptions.ReadOnlyError,
    b"WRONGPASS": exceptions.AuthenticationError,
}


def exchange(client: Any, *commands: Command, into: memoryview | None = None) -> list[Any]:
    """Send commands in one go and return their replies in order.

    A reply is bytes (large ones a bytearray), an int, None, a list of such, or an
    exception for an error that the server has replied: that one is not raised.

    If the connection is lost on the way, all is sent once more: a server that was
    restarted is not noticed before. So commands must be such that can be repeated.

    Args:
        client: A ``redis.StrictRedis``.
        commands: What to send.
        into: Where to put each large value of exactly that length; the reply is then
            this view.

    Raises:
        redis.exceptions.ConnectionError: No connection, or lost twice.
        redis.exceptions.TimeoutError: The server took longer than the connection's
            timeout to take something, or to send something.
    """
    pieces = pack(commands)
    try:
        return _exchange(client.connection_pool, pieces, len(commands), into)
    except exceptions.AuthenticationError:
        raise
    except exceptions.ConnectionError:
        return _exchange(client.connection_pool, pieces, len(commands), into)


def _exchange(pool: Any, pieces: list[Any], count: int, into: memoryview | None) -> list[Any]:
    connection = pool.get_connection()
    try:
        connection.send_packed_command(pieces, check_health=False)
        sock = getattr(connection, "_sock", None)
        if not isinstance(sock, socket.socket):
            return [_reply(connection) for _ in range(count)]
        reader = Reader(sock, into)
        return [reader.reply() for _ in range(count)]
    except BaseException as error:
        # Replies that nobody has read must not be those of the next command.
        connection.disconnect()
        if isinstance(error, socket.timeout):
            raise exceptions.TimeoutError("timeout while reading") from error
        if isinstance(error, OSError):
            raise exceptions.ConnectionError(f"error while reading: {error}") from error
        raise
    finally:
        pool.release(connection)


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except exceptions.ResponseError as error:
        return error


def pack(commands: Iterable[Command]) -> list[Any]:
    """Return commands as pieces of memory to send one after the other."""
    pieces: list[Any] = []
    small: list[Any] = []
    for command in commands:
        small.append(b"*%d\r\n" % len(command))
        for argument in command:
            if isinstance(argument, tuple):
                _pack_value(argument, small, pieces)
            else:
                data = argument.encode() if isinstance(argument, str) else argument
                small.append(b"$%d\r\n%b\r\n" % (len(data), data))
    pieces.append(b"".join(small))
    return pieces


def _pack_value(parts: tuple[BytesLike, ...], small: list[Any], pieces: list[Any]) -> None:
    views = [memoryview(part) for part in parts]
    small.append(b"$%d\r\n" % sum(view.nbytes for view in views))
    for view in views:
        if view.nbytes < _LARGE:
            small.append(view)
        else:
            pieces.append(b"".join(small))
            small.clear()
            pieces.append(view)
    small.append(b"\r\n")


class Reader:
    """Replies, read from a socket.

    Args:
        sock: A connected socket with nothing to read on it but these.
        into: As for `exchange`.
    """

    def __init__(self, sock: Any, into: memoryview | None = None) -> None:
        self._sock = sock
        self._into = into
        self._data = b""  # received and, from _at on, not used yet
        self._at = 0

    def reply(self) -> Any:
        """Return the next reply; see `exchange`."""
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return self._value(int(rest))
        if kind == b"*":
            return None if rest == b"-1" else [self.reply() for _ in range(int(rest))]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"-":
            cls = _ERRORS.get(rest.partition(b" ")[0], exceptions.ResponseError)
            return cls(rest.decode(errors="replace"))
        raise exceptions.InvalidResponse(f"no reply of a Redis server: {line[:50]!r}")

    def _line(self) -> bytes:
        while (end := self._data.find(b"\r\n", self._at)) < 0:
            self._receive()
        line = self._data[self._at : end]
        self._at = end + 2
        return line

    def _value(self, length: int) -> BytesLike | None:
        if length < 0:
            return None
        if length < _LARGE:
            while len(self._data) - self._at < length + 2:
                self._receive()
            value: Any = self._data[self._at : self._at + length]
            self._at += length + 2
            return value  # type: ignore[no-any-return]
        if self._into is not None and self._into.nbytes == length:
            value = self._into
        else:
            value = bytearray(length)
        with memoryview(value) as view:
            done = min(length, len(self._data) - self._at)
            view[:done] = self._data[self._at : self._at + done]
            self._at += done
            while done < length:
                received = self._sock.recv_into(view[done:])
                if not received:
                    raise _closed()
                done += received
        while len(self._data) - self._at < 2:  # the line's end
            self._receive()
        self._at += 2
        return value  # type: ignore[no-any-return]

    def _receive(self) -> None:
        data = self._sock.recv(64 * 1024)
        if not data:
            raise _closed()
        self._data = self._data[self._at :] + data
        self._at = 0


def _closed() -> exceptions.ConnectionError:
    return exceptions.ConnectionError("the server has closed the connection")
