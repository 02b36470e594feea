"""What the Dask benchmarks share: ways to send an argument, which take turns.

Each way has a process of its own, with a client and a scheduler (their memory is that process's)
and two worker processes beside it. It measures what it is asked for, line by line, so that all
ways can take turns: what else a machine does changes faster than one of them is done.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY = "/dev/shm"
MB = 1_000_000
HERE = Path(__file__).resolve().parent
EXAMPLES = [HERE.parent / "examples" / name for name in ("cholesky", "map_reduce")]

# Each with the process that it is measured in: one cluster serves plain Dask and what it has
# itself for large data.
WAYS = {
    "plain": "dask",
    "scatter": "dask",
    "scatter, direct": "dask",
    "scatter, broadcast": "dask",
    "peer, files": "peer-files",
    "peer, Redis": "peer-redis",
    "ours": "ours",
    "ours, scatter": "ours",
    "ours, Redis": "ours-redis",
}
SCATTER = {
    "scatter": {},
    "scatter, direct": {"direct": True},
    "scatter, broadcast": {"broadcast": True},
    "ours, scatter": {},
}
# Seconds after which a way stops taking turns, once it has had this many.
SECONDS, ENOUGH = 10, 3


# -- the tasks; workers import them: what travels by value costs Dask more


def first(x: Any, i: int) -> float:
    return float(x[i])


def small(i: int) -> int:
    return i + 1


def use(i: int, x: Any, gate: Any) -> int:
    return i


def wait_for(event: str) -> None:
    from distributed import Event

    Event(event).wait()


# -- in the process of a way


def cluster(n_workers: int = 2) -> Any:
    """Return worker processes, and a scheduler in this one."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=n_workers,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=":0",
        silence_logs=50,
    )


def client_for(process: str, on: Any) -> Any:
    """Return a client of the cluster."""
    port = int(os.environ.get("BENCH_REDIS_PORT", "0"))
    if process == "ours":
        from proxystore_dask import Client

        return Client(on)
    if process == "ours-redis":
        from proxystore.connectors.redis import RedisConnector
        from proxystore.store import Store
        from proxystore_dask import Client

        return Client(on, ps_store=Store("bench", RedisConnector("127.0.0.1", port)))
    if process.startswith("peer"):
        from proxystore_ex.plugins.distributed import Client as PeerClient

        from proxystore.connectors.file import FileConnector
        from proxystore.connectors.redis import RedisConnector
        from proxystore.store import Store

        connector: Any = (
            RedisConnector("127.0.0.1", port)
            if process == "peer-redis"
            else FileConnector(os.environ["BENCH_DIR"])
        )
        store = Store("bench", connector, register=True)
        return PeerClient(on, ps_store=store, ps_threshold=MB)
    from distributed import Client as DaskClient

    return DaskClient(on)


def fan_out(client: Any, way: str, size: int, tasks: int) -> Callable[[], None]:
    """One array to many tasks."""
    import numpy as np

    # New content each time: what is stored or cached already is another matter.
    array = np.random.default_rng().random(size // 8)

    def run() -> None:
        argument = client.scatter(array, **SCATTER[way]) if way in SCATTER else array
        futures = [client.submit(first, argument, i) for i in range(tasks)]
        assert client.gather(futures) == [array[i] for i in range(tasks)]

    return run


def round_trips(client: Any, way: str, size: int, tasks: int) -> Callable[[], None]:
    """An array to each task, one task after the other."""
    import numpy as np

    arrays = np.random.default_rng().random((tasks, size // 8))

    def run() -> None:
        for array in arrays:
            assert client.submit(first, array, 7).result() == array[7]

    return run


def submits(client: Any, way: str, tasks: int) -> Callable[[], None]:
    """A submit for each small task."""

    def run() -> None:
        futures = [client.submit(small, i, pure=False) for i in range(tasks)]
        assert sum(client.gather(futures)) == tasks * (tasks + 1) // 2

    return run


def mapped(client: Any, way: str, tasks: int) -> Callable[[], None]:
    """One map for all small tasks."""

    def run() -> None:
        futures = client.map(small, range(tasks), pure=False)
        assert sum(client.gather(futures)) == tasks * (tasks + 1) // 2

    return run


def cholesky(client: Any, way: str, n: int, block: int) -> Callable[[], None]:
    """Factorize a matrix by tiles, until its factor is here."""
    import numpy as np

    import cholesky as example

    rng = np.random.default_rng()
    matrix = rng.random((n, n))
    matrix = matrix + matrix.T + 2 * n * np.eye(n)
    vector = rng.random(n)

    def run() -> None:
        lower = example.assembled(client, example.factor(client, matrix, block))
        assert np.allclose(lower @ (lower.T @ vector), matrix @ vector)

    return run


def map_reduce(client: Any, way: str, texts: int, words: int) -> Callable[[], None]:
    """Count the words of texts that are here, each in a task, and add them up in another."""
    import map_reduce as example

    made = [example.random_text(words, seed) for seed in range(texts)]

    def run() -> None:
        counts = example.word_counts(client, made, fan_in=texts).result()
        assert sum(counts.values()) == texts * words

    return run


ROWS = {row.__name__: row for row in (fan_out, round_trips, submits, mapped, cholesky, map_reduce)}


def memory_mb(field: str, pid: int | str = "self") -> float:
    """Return a line of /proc/PID/status, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1e3


def settle(client: Any) -> None:
    """Wait until the scheduler has forgotten every task, but not for what a failed one needs.

    A future whose error has been raised stays as long as its client (dask/distributed#8790).
    """
    gc.collect()
    while client.run_on_scheduler(is_busy):
        time.sleep(0.02)


def is_busy(dask_scheduler: Any) -> bool:
    states = {task.state for task in dask_scheduler.tasks.values()}
    return bool(states) and "erred" not in states


def measured(client: Any, row: str, way: str, what: dict[str, int]) -> dict[str, Any]:
    """Return seconds, and megabytes above the start; or what went wrong."""
    run = ROWS[row](client, way, **what)
    settle(client)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory_mb("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    try:
        run()
    except Exception as error:  # noqa: BLE001 - that another way cannot do it is a finding
        return {"error": f"{type(error).__name__}: {error}"}
    elapsed = time.perf_counter() - start
    found = {
        "seconds": elapsed,
        "mb": memory_mb("VmHWM") - before,
        "cpu": time.process_time() - cpu,
    }
    settle(client)
    return found


def serve(process: str) -> None:
    """Measure what is asked for, until nothing more is."""
    with cluster() as workers, client_for(process, workers) as client:
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            print(json.dumps(measured(client, *json.loads(line))), flush=True)


def stand_by() -> None:
    """Have a cluster here, until nothing more is to come."""
    with cluster() as workers:
        print(json.dumps(workers.scheduler_address), flush=True)
        sys.stdin.read()


# -- in the process of a benchmark


@dataclass(frozen=True)
class Turns:
    """What a way needed, turn by turn.

    Attributes:
        seconds: Of each turn; the first is the warm-up.
        mb: Peak of the memory of client and scheduler above the start, of each turn.
        cpu: Seconds that client and scheduler had a core, of each turn.
        error: Why there are no more; None if nothing went wrong.
    """

    seconds: list[float]
    mb: list[float]
    cpu: list[float]
    error: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds[1:] or self.seconds)

    @property
    def mean(self) -> float:
        return statistics.mean(self.seconds[1:] or self.seconds)


class Ways:
    """Processes that measure; makes those it is told of, and no others."""

    def __init__(self, ways: Sequence[str]) -> None:
        self.ways = list(ways)
        self._stack = contextlib.ExitStack()
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Ways:
        with self._stack:
            pythons = {"ours": sys.executable, "peer": os.environ.get("PROXYSTORE_PEER_PYTHON", "")}
            if any(way.startswith("peer") for way in self.ways) and not shutil.which(
                pythons["peer"]
            ):
                print("PROXYSTORE_PEER_PYTHON is not set: without the other distribution\n")
                self.ways = [way for way in self.ways if not way.startswith("peer")]
            environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
            environment["PYTHONPATH"] = os.pathsep.join(map(str, EXAMPLES))
            if any("Redis" in way for way in self.ways):
                from proxystore.testing.redis_server import RedisServer

                server = self._stack.enter_context(RedisServer())
                environment["BENCH_REDIS_PORT"] = str(server.port)
            for process in dict.fromkeys(WAYS[way] for way in self.ways):
                directory = self._stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY))
                python = pythons["peer" if process.startswith("peer") else "ours"]
                self._processes[process] = self._stack.enter_context(
                    subprocess.Popen(
                        [python, __file__, process],
                        env={**environment, "BENCH_DIR": directory},
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
            for way in list(self.ways):
                process = self._processes[WAYS[way]]
                if not hasattr(process, "is_ready"):
                    assert process.stdout is not None
                    process.is_ready = bool(process.stdout.readline())
                if not process.is_ready:
                    print(f"{way}: does not start, see above", file=sys.stderr)
                    self.ways.remove(way)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()  # it ends
        self._stack.close()

    def measure(
        self, row: str, turns: int, *, seconds: float = SECONDS, **what: int
    ) -> dict[str, Turns]:
        """Return what each way needs for a row of `ROWS`.

        Args:
            row: Its name.
            turns: How often, after a warm-up.
            seconds: A way that has used up as many stops taking turns, once it has had a few.
            **what: Its arguments.
        """
        found: dict[str, Turns] = {way: Turns([], [], []) for way in self.ways}
        for turn in range(turns + 1):
            # The other way round each time: each comes right after the other as often.
            for way in self.ways if turn % 2 == 0 else reversed(self.ways):
                had = found[way]
                if had.error or (sum(had.seconds) > seconds and len(had.seconds) >= ENOUGH):
                    continue
                answer = self._ask(way, row, what)
                if "error" in answer:
                    found[way] = Turns(had.seconds, had.mb, had.cpu, answer["error"])
                else:
                    had.seconds.append(answer["seconds"])
                    had.mb.append(answer["mb"])
                    had.cpu.append(answer["cpu"])
        return found

    def _ask(self, way: str, row: str, what: dict[str, int]) -> dict[str, Any]:
        process = self._processes[WAYS[way]]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([row, way, what]) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer


def table(title: str, found: dict[str, Turns]) -> Iterator[str]:
    """Yield the lines that say what each way needed, and how many times as long as ours."""
    yield f"{title:44}{'median':>9}{'mean':>9}{'warm-up':>10}{'memory':>11}{'/ ours':>9}"
    ours = found["ours"]
    for way, turns in found.items():
        if turns.error:
            yield f"  {way:42}{turns.error.splitlines()[0][:70]}"
            continue
        yield (
            f"  {way:42}{turns.median * 1e3:6.0f} ms{turns.mean * 1e3:6.0f} ms"
            f"{turns.seconds[0] * 1e3:7.0f} ms{statistics.median(turns.mb[1:]):+8.0f} MB"
            f"{turns.median / ours.median:9.2f}"
        )


if __name__ == "__main__":
    stand_by() if sys.argv[1] == "cluster" else serve(sys.argv[1])
