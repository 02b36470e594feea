#!/usr/bin/env python3
"""Kill parts of a Dask cluster at random, and look at what its clients get and what is left.

    tests/chaos/chaos_dask.py                      40 rounds
    tests/chaos/chaos_dask.py --rounds 200 --seed 7
    tests/chaos/chaos_dask.py --kinds worker,client

A round is a program of its own on a cluster of processes (a scheduler, two workers with nannies):
calls, maps, chains, graphs, collections, scattered values, colliding keys, dropped futures, results
in the store and in Dask. Meanwhile this script, at random moments,

- worker: kills a worker, in a task or after one;
- restart: has all nannies restart their workers;
- client: kills the program;
- scheduler: kills the scheduler, and starts another one at the same address.

It counts wrong results, results that are lost (an error where plain Dask would have run the task
again), objects (and halves of objects) that are left in the store when the program is gone, and
rounds that hang. Prints one line a round, with the seed that repeats
its choices (moments differ), and exits with 1 if any count is not 0.

"Lost" is what plain Dask would not have lost. When a worker dies, that is everything: Dask runs
again what it needs (it is told not to give up on a task whose workers die), so every error counts.
When the scheduler dies, or all workers are restarted on demand, plain Dask cancels every future,
and calls meanwhile end with a connection error or a time-out: then the program asks again, as a
program with plain Dask would have to, and only what still fails the twentieth time, or with any
other error, counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

KINDS = ("worker", "worker", "restart", "client", "scheduler")
STEPS = 30
# A round takes 5 s; one that takes this long hangs.
SECONDS_PER_ROUND = 120
# Objects are evicted a tenth of a second after they were needed; a lost client is noticed at once.
# But a worker that starts is asked whether it sees one, and may take its time until it answers.
SECONDS_TO_EVICT = 60

# ----------------------------------------------------------------- the program of a round


def slowly(array: Any, i: int = 0) -> float:
    time.sleep(0.01)
    return float(array.sum()) + i


def made(array: Any, i: int) -> Any:
    time.sleep(0.01)
    return array + i


class Program:
    """Random calls, and what their results have to be."""

    def __init__(self, client: Any, rng: random.Random) -> None:
        import numpy as np

        self.client = client
        self.rng = rng
        self.arrays = [np.full(20_000 + 7 * i, float(i + 1)) for i in range(5)]
        self.held: list[Any] = []
        self.found: Counter[str] = Counter()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            step = self.rng.choice(self.STEPS)
            array = self.rng.choice(self.arrays)
            for _ in range(20):
                if self.attempt(step, array):
                    break
            else:
                self.found["lost"] += 1

    def attempt(self, step: Callable[..., Any], array: Any) -> bool:
        from distributed.client import FutureCancelledError, FuturesCancelledError

        try:
            futures, expected = step(self, array, float(array.sum()))
            if self.rng.random() < 0.8:
                found = self.client.gather(futures)
                self.found["tasks"] += len(found)
                for value, allowed in zip(found, expected, strict=True):
                    if float(value if isinstance(value, float) else value.sum()) not in allowed:
                        self.found["wrong"] += 1
                        print(step.__name__, value, allowed, file=sys.stderr)
            if self.rng.random() < 0.3:
                self.held.append(futures)
                del self.held[:-3]
        except (FutureCancelledError, FuturesCancelledError, TimeoutError, OSError) as error:
            # The scheduler is gone, or the workers are restarted: so it is with plain Dask.
            self.found["asked again"] += 1
            print(f"{step.__name__}: {type(error).__name__}: {error}", file=sys.stderr)
            time.sleep(0.2)
            return False
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            self.found["lost"] += 1
            print(f"lost: {step.__name__}: {type(error).__name__}: {error}", file=sys.stderr)
        return True

    def stored(self) -> str:
        return self.rng.choice(["large", "durable"])

    def any_results(self) -> str:
        return self.rng.choice(["large", "durable", "never"])

    def call(self, array: Any, total: float) -> Any:
        return [self.client.submit(slowly, array, ps_results=self.any_results())], [[total]]

    def result(self, array: Any, total: float) -> Any:
        future = self.client.submit(made, array, 1, ps_results=self.stored(), pure=False)
        return [future], [[total + array.size]]

    def chain(self, array: Any, total: float) -> Any:
        future = self.client.submit(made, array, 1, ps_results=self.stored())
        again = self.client.submit(made, future, 2, ps_results=self.any_results())
        return [self.client.submit(slowly, again), again], [[total + 3 * array.size]] * 2

    def map(self, array: Any, total: float) -> Any:
        futures = self.client.map(made, [array] * 4, range(4), ps_results=self.stored())
        sums = self.client.map(slowly, futures, pure=False)
        return sums, [[total + i * array.size] for i in range(4)]

    def graph(self, array: Any, total: float) -> Any:
        import dask

        first = self.client.submit(made, array, 1, ps_results=self.stored())
        node = dask.delayed(made)(first, 1)
        return self.client.compute([dask.delayed(slowly)(node)]), [[total + 2 * array.size]]

    def collection(self, array: Any, total: float) -> Any:
        import dask.array as da

        kept = self.client.persist(da.from_array(array, chunks=array.size))
        return [self.client.compute((kept + array).sum())], [[2 * total]]

    def scattered(self, array: Any, total: float) -> Any:
        future = self.client.scatter(array)
        return [self.client.submit(slowly, future, pure=False)], [[total]]

    def colliding(self, array: Any, total: float) -> Any:
        key = f"colliding-{self.rng.randrange(3)}"
        future = self.client.submit(made, array, 0, key=key, ps_results=self.any_results())
        return [future], [[float(each.sum()) for each in self.arrays]]

    STEPS = (call, result, chain, map, graph, collection, scattered, colliding)


def program(address: str, directory: str, seed: int, steps: int) -> None:
    from proxystore.connectors.file import FileConnector
    from proxystore.store import Store
    from proxystore_dask import Client

    with (
        Store(f"chaos-{seed}", FileConnector(directory, clear=False), cache_size=0) as store,
        Client(address, ps_store=store, ps_threshold="50 kB", timeout=60) as client,
    ):
        doing = Program(client, random.Random(seed))
        print("started", flush=True)
        doing.run(steps)
    print(json.dumps(doing.found), flush=True)


# --------------------------------------------------------------------------- the cluster


class Cluster:
    """A scheduler and two workers with nannies, each a process of its own."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._log = log.open("a")
        self._env = {
            **os.environ,
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1000",
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
            ),
        }
        self.processes: list[subprocess.Popen[Any]] = []

    def start(self) -> None:
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"]
        self._run("scheduler", *options)
        for _ in range(2):
            self._run("worker", self.address, "--nthreads", "2", "--no-dashboard")

    def _run(self, *command: str) -> None:
        self.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "dask", *command],
                env=self._env,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )
        )

    def stop(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.processes.clear()

    def workers(self) -> list[psutil.Process]:
        """Those that nannies have started, the ones that are starting left out."""
        found = []
        for nanny in self.processes[1:]:
            with contextlib.suppress(psutil.Error):
                # Told from its tracker of resources by name, which for a worker may be a title. A
                # nanny does not survive the death of a worker that it is still starting.
                found += [
                    child
                    for child in psutil.Process(nanny.pid).children()
                    if "resource_tracker" not in " ".join(child.cmdline())
                    and time.time() - child.create_time() > 3
                    and self._knows(child)
                ]
        return found

    def _knows(self, worker: psutil.Process) -> bool:
        """Whether a worker is connected to the scheduler; on a busy machine that takes time."""
        return any(
            each.raddr and each.raddr.port == self.port
            for each in worker.net_connections(kind="tcp")
        )


@contextlib.contextmanager
def running(log: Path) -> Iterator[Cluster]:
    cluster = Cluster(log)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def harm(cluster: Cluster, kind: str, client: subprocess.Popen[Any], rng: random.Random) -> int:
    """How many processes have been killed, or restarted on demand."""
    if kind == "worker":
        workers = cluster.workers()
        if not workers:
            return 0
        try:
            rng.choice(workers).kill()
        except psutil.Error:
            return 0
    elif kind == "restart":
        import distributed

        with distributed.Client(cluster.address, set_as_default=False, timeout=30) as other:
            try:
                other.restart(wait_for_workers=False)
            except AssertionError:
                # The scheduler's own: it has released every task, and some are not forgotten. It
                # has told nobody then, and restarted nothing.
                print("no restart:", other.run_on_scheduler(states), file=sys.stderr)
                return 0
    elif kind == "client":
        client.kill()
    else:
        cluster.stop()
        cluster.start()
    return 1


def states(dask_scheduler: Any) -> list[str]:
    """What the scheduler has not forgotten."""
    return [
        f"{task!r} {task.dependents} {task.who_wants}" for task in dask_scheduler.tasks.values()
    ]


def one_round(
    cluster: Cluster, seed: int, kinds: tuple[str, ...], steps: int, log: Path
) -> Counter[str]:
    rng = random.Random(seed)
    kind = rng.choice(kinds)
    found: Counter[str] = Counter({kind: 1})
    with tempfile.TemporaryDirectory(prefix="chaos-dask-") as directory, log.open("a") as errors:
        objects = Path(directory, "objects")
        command = [sys.executable, __file__, "--program", cluster.address, str(objects)]
        client = subprocess.Popen(
            [*command, "--seed", str(seed), "--steps", str(steps)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "60s"},
        )
        assert client.stdout is not None
        client.stdout.readline()
        for _ in range(rng.randrange(1, 4) if kind == "worker" else 1):
            time.sleep(rng.random() * 1.5)
            found["harms"] += harm(cluster, kind, client, rng)
        try:
            output, _ = client.communicate(timeout=SECONDS_PER_ROUND)
        except subprocess.TimeoutExpired:
            found["hung"] += 1
            client.kill()
            output, _ = client.communicate()
        lines = output.splitlines()
        if lines:
            found.update(json.loads(lines[-1]))
            if kind == "worker":  # from which plain Dask recovers: nothing is cancelled by it
                found["lost"] += found.pop("asked again", 0)
        elif client.returncode != -signal.SIGKILL:
            found["failed"] += 1
        end = time.monotonic() + SECONDS_TO_EVICT
        while any(objects.iterdir()) and time.monotonic() < end:
            time.sleep(0.05)
        for each in objects.iterdir():
            found["halves left" if each.name.startswith(".") else "left"] += 1
            print(f"left: {each.name}", file=errors)
    return found


BAD = ("wrong", "lost", "left", "halves left", "hung", "failed")


def chaos(rounds: int, seed: int, kinds: tuple[str, ...], steps: int, log: Path) -> Counter[str]:
    """The sums of all rounds."""
    total: Counter[str] = Counter()
    with running(log) as cluster:
        for number in range(rounds):
            found = one_round(cluster, seed + number, kinds, steps, log)
            print(f"round {number + 1}, seed {seed + number}: {dict(found)}", flush=True)
            total.update(found)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="of all processes")
    parser.add_argument("--program", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.program:
        program(*options.program, options.seed, options.steps)
        return 0
    # So that whoever stops this script stops the cluster.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    kinds = tuple(options.kinds.split(","))
    total = chaos(options.rounds, options.seed, kinds, options.steps, options.log)
    print(f"in all: {dict(total)}")
    bad = {what: total[what] for what in BAD}
    print(f"{options.rounds} rounds: {bad}")
    return int(any(bad.values()))


if __name__ == "__main__":
    sys.exit(main())
