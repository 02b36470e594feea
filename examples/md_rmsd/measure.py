"""What a piece of work costs: wall time, bytes through the submit process, peak memory.

All runs are measured by the same code, from outside: nothing in Dask, Parsl or proxystore is
wrapped or asked.

**Bytes through the submit process.** The Linux kernel counts, for every TCP connection, the bytes
its peer acknowledged and the bytes it received (RFC 4898; `tcpi_bytes_acked` and
`tcpi_bytes_received` of TCP_INFO, Linux 4.1). We read both for each connection of this process and
report by how much their sum grew. This process holds Parsl's DataFlowKernel, and with a
LocalCluster the Dask client *and* scheduler: a connection with both its ends here is counted once.
The result is what the Dask scheduler received and sent, or what Parsl's submit process did. A
connection that closes is counted up to the last sample before.

**Peak memory.** The sum over processes of the proportional set size (PSS): as RSS, but a page that
n processes map counts 1/n for each. RSS would count a memory-mapped file once per worker; USS,
pages of one process alone, would not count it at all. Sampled every 10 ms or so; reported as the
most seen, less the level at the start. With the workers is counted what runs beside them (Parsl's
process pool), with the submit process what else it started: Parsl's interchange, which queues
tasks as Dask's scheduler does.
"""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import psutil

_SAMPLE_PAUSE = 0.01
# Where struct tcp_info (linux/tcp.h) keeps tcpi_bytes_acked, and tcpi_bytes_received after it.
_TCP_INFO_BYTES_ACKED = 120
_TCP_INFO_SIZE = 136
_TCP_FAMILIES = (socket.AF_INET, socket.AF_INET6)

# Both ends of a connection; the same whichever end one looks from.
Connection = frozenset[tuple[object, ...]]


@dataclass
class Cost:
    """What a `measured` block cost; complete once the block is left.

    Attributes:
        wall: Seconds.
        traffic: Bytes sent and received by this process over TCP.
        submit_memory: Most bytes above the start on the submit side.
        worker_memory: Most bytes above the start on the workers' side, all together.
    """

    wall: float = 0.0
    traffic: int = 0
    submit_memory: int = 0
    worker_memory: int = 0


@contextmanager
def measured(workers: set[int], memory: int) -> Iterator[Cost]:
    """Measure the block; processes and connections should be there when it starts.

    Args:
        workers: Process ids of the workers, on this machine.
        memory: Bytes to use and free before the clock starts. A virtual machine may get memory
            from its host only when it is touched, and give it back when it is free for a second or
            two: 2.5 s/GB were seen, ten times the work itself. No run should pay for that.
    """
    cost = Cost()
    np.ones(memory, dtype=np.uint8)
    sampler = _Sampler(cost, workers)
    started = time.perf_counter()
    try:
        yield cost
    finally:
        cost.wall = time.perf_counter() - started
        sampler.stop()


class _Sampler:
    """Watches connections and memory from a thread of its own until stopped."""

    def __init__(self, cost: Cost, workers: set[int]) -> None:
        self._cost = cost
        self._submit, self._workers = _processes(workers)
        _return_free_memory()
        self._submit_before = _memory(self._submit)
        self._workers_before = _memory(self._workers)
        self._bytes_before = _connection_bytes()
        self._bytes = dict(self._bytes_before)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="measure", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        self._sample()
        before = self._bytes_before
        self._cost.traffic = sum(n - before.get(c, 0) for c, n in self._bytes.items())

    def _run(self) -> None:
        while not self._done.wait(_SAMPLE_PAUSE):
            self._sample()

    def _sample(self) -> None:
        cost = self._cost
        submit = _memory(self._submit) - self._submit_before
        workers = _memory(self._workers) - self._workers_before
        cost.submit_memory = max(cost.submit_memory, submit)
        cost.worker_memory = max(cost.worker_memory, workers)
        self._bytes.update(_connection_bytes())


def _processes(worker_ids: set[int]) -> tuple[set[psutil.Process], set[psutil.Process]]:
    """Return the processes on the submit side, and those on the workers' side."""
    here = psutil.Process()
    workers = set()
    for worker in map(psutil.Process, worker_ids):
        # Dask's workers are children of this process; Parsl's, of a pool that is not.
        pool = worker if worker.ppid() == here.pid else psutil.Process(worker.ppid())
        workers |= {pool, *pool.children(recursive=True)}
    return {here, *here.children(recursive=True)} - workers, workers


def _memory(processes: set[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def _return_free_memory() -> None:
    """Give memory freed by earlier work back to the system, or its reuse would look free."""
    gc.collect()
    with suppress(AttributeError):  # A C library other than glibc.
        ctypes.CDLL(None).malloc_trim(0)


def _connection_bytes() -> dict[Connection, int]:
    """Return the bytes that passed, so far, through each TCP connection of this process."""
    counts: dict[Connection, int] = {}
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # Closed while we looked, or not connected.
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(fd)) as end:
                if end.family not in _TCP_FAMILIES or end.type != socket.SOCK_STREAM:
                    continue
                connection = frozenset((end.getsockname(), end.getpeername()))
                info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
            acked, received = struct.unpack_from("QQ", info, _TCP_INFO_BYTES_ACKED)
            counts[connection] = max(counts.get(connection, 0), acked + received)
    return counts
