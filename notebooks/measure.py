"""What a run costs, as curves over time: bytes through this process, its memory, whatever else.

    with measure.recording(traffic=measure.Traffic(), memory=measure.memory) as record:
        ...
    plt.plot(record.time, record["traffic"])

This process holds Dask's client and scheduler, or Parsl's submit side: what goes through it limits
how many workers it can feed. Nothing in Dask, Parsl or proxystore is wrapped or asked. Linux only.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

# Where struct tcp_info (linux/tcp.h) keeps tcpi_bytes_acked, and tcpi_bytes_received after it.
BYTES_ACKED = 120
INFO_SIZE = 136

PAUSE = 0.02  # between two samples, in seconds


class Record:
    """Samples of several quantities.

    Attributes:
        seconds: How long the block took.
        time: When the samples were taken, in seconds from the start.
    """

    def __init__(self, quantities: dict[str, Callable[[], float]]) -> None:
        self.seconds = 0.0
        self.time: list[float] = []
        self._quantities = quantities
        self._start = time.perf_counter()
        self._first = {name: quantity() for name, quantity in quantities.items()}
        self._samples: dict[str, list[float]] = {name: [] for name in quantities}
        self._sample()

    def __getitem__(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """By how much a quantity has grown since the start, at each `time`."""
        return np.array(self._samples[name], dtype=float)

    def _sample(self) -> None:
        self.time.append(time.perf_counter() - self._start)
        for name, quantity in self._quantities.items():
            self._samples[name].append(quantity() - self._first[name])


@contextmanager
def recording(**quantities: Callable[[], float]) -> Iterator[Record]:
    """Sample functions, each a number's, every 20 ms while the block runs."""
    record = Record(quantities)
    done = threading.Event()

    def sample() -> None:
        while not done.wait(PAUSE):
            record._sample()

    sampler = threading.Thread(target=sample, name="measure", daemon=True)
    sampler.start()
    try:
        yield record
    finally:
        record.seconds = time.perf_counter() - record._start
        done.set()
        sampler.join()
        record._sample()


class Traffic:
    """A function that gives the bytes which have passed through this process's TCP connections.

    The kernel counts them (RFC 4898). A connection with both its ends here counts once; one that
    was closed, up to the last call before.
    """

    def __init__(self) -> None:
        self._counts: dict[frozenset[Any], int] = {}

    def __call__(self) -> int:
        """Return the bytes, those sent and those received."""
        for fd in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):  # closed meanwhile, or not connected
                if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                    continue
                with socket.socket(fileno=os.dup(fd)) as end:
                    if end.family not in (socket.AF_INET, socket.AF_INET6):
                        continue
                    connection = frozenset((end.getsockname(), end.getpeername()))
                    info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_SIZE)
                passed = sum(struct.unpack_from("QQ", info, BYTES_ACKED))
                self._counts[connection] = max(self._counts.get(connection, 0), passed)
        return sum(self._counts.values())


def memory() -> int:
    """Return the bytes of memory that this process has."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def touch(nbytes: int) -> None:
    """Use memory and free it, so that the first run does not pay for what the next one reuses.

    A virtual machine may get memory from its host only when it is touched: seconds for each GB.
    """
    np.ones(nbytes, dtype=np.uint8)
