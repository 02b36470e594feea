"""The Redis protocol: what is sent, and replies however they arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions

from proxystore.connectors._resp import Reader, pack


class Trickle:
    """A socket that gives so many bytes at a time."""

    def __init__(self, data, step):
        self.data = memoryview(data)
        self.step = step

    def recv(self, limit):
        given, self.data = self.data[: min(limit, self.step)], self.data[min(limit, self.step) :]
        return bytes(given)

    def recv_into(self, view):
        given = self.recv(len(view))
        view[: len(given)] = given
        return len(given)


def written(reply):
    """A reply as a server writes it."""
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(written, reply))
    return b"$%d\r\n%b\r\n" % (len(reply), reply)


values = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.binary(max_size=50)
    | st.sampled_from([b"\r\n", b"x" * 32767, b"\r" * 32768, b"y" * 70_000])
)


@given(
    replies=st.lists(values | st.lists(values, max_size=3), min_size=1, max_size=4),
    step=st.sampled_from([1, 2, 3, 7, 1000, 32768, 65536, 10**9]),
)
def test_replies_are_read_however_they_arrive(replies, step):
    reader = Reader(Trickle(b"".join(map(written, replies)), step))
    assert [reader.reply() for _ in replies] == replies


@pytest.mark.parametrize(("line", "cls"), [
    (b"-ERR no such thing", exceptions.ResponseError),
    (b"-WRONGTYPE Operation", exceptions.ResponseError),
    (b"-OOM command not allowed", exceptions.OutOfMemoryError),
    (b"-NOPERM this user", exceptions.NoPermissionError),
    (b"-NOAUTH Authentication required.", exceptions.AuthenticationError),
    (b"-LOADING the data", exceptions.BusyLoadingError),
])  # fmt: skip
def test_errors_are_replies(line, cls):
    reader = Reader(Trickle(b"*2\r\n" + line + b"\r\n+OK\r\n$2\r\nhi\r\n", 5))
    (error, ok), after = reader.reply(), reader.reply()
    assert type(error) is cls
    assert str(error) == line[1:].decode()
    assert (ok, after) == (b"OK", b"hi")


@pytest.mark.parametrize("data", [b"", b"$5\r\nabc", b"*2\r\n:1\r\n", b"$40000\r\nabc"])
def test_a_closed_connection_is_an_error(data):
    with pytest.raises(exceptions.ConnectionError, match="closed"):
        Reader(Trickle(data, 100)).reply()


def test_what_is_no_reply_is_an_error():
    with pytest.raises(exceptions.InvalidResponse, match="HTTP"):
        Reader(Trickle(b"HTTP/1.1 400 Bad Request\r\n", 100)).reply()


def test_a_value_is_put_where_it_is_wanted_if_it_fits():
    place = memoryview(bytearray(40_000))
    replies = [b"a" * 40_000, b"b" * 40_001]
    reader = Reader(Trickle(b"".join(map(written, replies)), 1000), place)
    assert reader.reply() is place
    assert place == replies[0]
    assert reader.reply() == replies[1]
    assert place == replies[0]


@given(st.lists(st.binary(max_size=20) | st.just(b"x" * 40_000), max_size=6))
def test_commands_are_packed_without_touching_large_pieces(parts):
    pieces = pack([("SET", "name", tuple(parts)), ("GET", b"\xff")])
    value = b"".join(parts)
    assert b"".join(pieces) == (
        b"*3\r\n$3\r\nSET\r\n$4\r\nname\r\n$%d\r\n%b\r\n*2\r\n$3\r\nGET\r\n$1\r\n\xff\r\n"
        % (len(value), value)
    )
    large = [piece.obj for piece in pieces if isinstance(piece, memoryview)]
    assert [id(piece) for piece in large] == [id(part) for part in parts if len(part) == 40_000]
