#!/usr/bin/env python3
"""Kill parts of a Parsl program at random, and look at what it gives and what it leaves.

    tests/chaos/chaos_parsl.py                     20 rounds
    tests/chaos/chaos_parsl.py --rounds 100 --seed 7
    tests/chaos/chaos_parsl.py --kinds worker,manager

A round is a program of its own on HighThroughputExecutor: a mixed graph, with retries, of
arguments, results, chains, join apps, bash apps, cached apps, proxies and dropped futures.
Meanwhile this script kills, at random moments,

- worker: processes that run tasks;
- manager: the process that feeds them, which leaves its workers without it;
- block: a manager with all its workers, as when a job ends;
- submit: the program itself; another one then starts and must find nothing of it.

It counts wrong results, objects (and halves of objects) that are left in the store, and
rounds that hang. Prints one line a round, with the seed that repeats its choices (moments
differ), and exits with 1 if any count is not 0.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

KINDS = ("worker", "manager", "block", "submit")
# A round takes 5 to 20 s. One that takes this long hangs.
SECONDS_PER_ROUND = 120
# More than a round has kills: a task that is killed each time has a right to fail.
RETRIES = 10
# Results that apps with cache=True have, which stay until `close`.
CACHED = 4
# Floats; larger than the threshold, and so large that some are killed while they write.
LENGTHS = (40_000, 1_000_000)
# System calls of a worker without a task: poll, select, futex, pselect (x86-64). While it waits it
# has the lock of a queue, and when it is killed, all workers of its manager wait for ever: that is
# so with Parsl alone.
WAITING = {"7", "202", "23", "270"}
# How long a manager needs to see that a worker is gone, and to write it down.
SECONDS_TO_NOTICE = 2
MANAGER = "process_worker_pool.py"


# -- the program


def program(seed: int, directory: str, *, small: bool) -> int:
    """Run a graph, check everything, and print what was wrong as one line of JSON."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.launchers import SimpleLauncher
    from parsl.providers import LocalProvider

    from proxystore.connectors.file import FileConnector
    from proxystore.store import Store
    from proxystore_parsl import StoreApps, StoreMemoizer

    lost: list[str] = []

    def retry(error: Exception, record: Any) -> float:
        lost.append(type(error).__name__)
        return 1

    choose = random.Random(seed)
    executor = HighThroughputExecutor(
        address="127.0.0.1",
        loopback_address="127.0.0.1",
        encrypted=False,
        max_workers_per_node=2,
        cores_per_worker=1e-6,
        heartbeat_period=1,
        heartbeat_threshold=3,
        block_error_handler=False,  # else Parsl gives up after three lost blocks
        provider=LocalProvider(
            init_blocks=1, min_blocks=1, max_blocks=1, launcher=SimpleLauncher()
        ),
    )
    config = Config(
        executors=[executor],
        retries=RETRIES,
        run_dir=str(Path(directory, "run")),
        strategy="simple",
        strategy_period=0.5,
        initialize_logging=False,
        memoizer=StoreMemoizer(),
        retry_handler=retry,
    )
    objects = Path(directory, "objects")
    named = choose.random() < 0.5
    store = Store(f"chaos-{seed}", FileConnector(objects)) if named else None
    wrong: list[str] = []
    with StoreApps(store) as apps:
        with parsl.load(config):
            expected = graph(apps, choose, directory, small=small)
            apps.put([0] * 100_000)  # the embedded store exists, and its place can be told
            place = place_of(apps)
            print(json.dumps({"place": place}), flush=True)
            while expected:  # each future is dropped once it was looked at
                name, future, value = expected.pop(choose.randrange(len(expected)))
                check(name, future, value, wrong)
                del future
            gc.collect()
            left = until_left(apps, place, cached=CACHED)
            if left:
                wrong.append(f"left while Parsl runs: {left}")
        apps.close()
        left = until_left(apps, place, cached=0)
        if left:
            wrong.append(f"left after the end: {left}")
    print(json.dumps({"wrong": wrong, "lost": lost}), flush=True)
    return 0


def place_of(apps: Any) -> str:
    """Return the directory of a store."""
    return str(apps.store.connector.options["store_dir"])


def check(name: str, future: Any, value: Any, wrong: list[str]) -> None:
    """Compare a result with what it has to be."""
    import numpy as np

    try:
        found = future.result(SECONDS_PER_ROUND)
        same = np.array_equal(found, value)
    except Exception as error:  # noqa: BLE001 - it is the outcome
        wrong.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
        return
    if not same:
        wrong.append(f"{name}: {found!r:.200}, not {value!r:.200}")


def until_left(apps: Any, place: str, cached: int) -> list[str]:
    """Return the files that stay in a store, other than those of cached results."""
    deadline = time.monotonic() + 10
    pause = threading.Event()
    while True:
        files = os.listdir(place) if os.path.isdir(place) else []
        if len(files) <= cached or time.monotonic() > deadline:
            return files if len(files) > cached else []
        pause.wait(0.05)


def graph(
    apps: Any, choose: random.Random, directory: str, *, small: bool
) -> list[tuple[str, Any, Any]]:
    """Call apps of all kinds; return a name, a future and the value it must have, of each."""
    import numpy as np

    from proxystore_parsl import StoreApps

    # Workers get these by value, since the program is not a module that they could import.

    def at_work() -> None:
        import os
        from pathlib import Path

        Path(directory, f"worker-{os.getpid()}").touch()

    def slow(x: Any, factor: float, seconds: float) -> Any:
        import time

        at_work()
        time.sleep(seconds)
        x *= factor  # its own copy: a retry must find the first content
        return x

    def total(x: Any, seconds: float = 0.0) -> float:
        import time

        at_work()
        time.sleep(seconds)
        return float(x.sum())

    def nested(boxed: Any, inputs: Any = ()) -> Any:
        return {
            "a": boxed["deep"][0] + 1,
            "b": [float(x.sum()) for x in inputs],
            "c": boxed["deep"][1],
        }

    def parts_total(record: Any) -> float:
        return float(record["a"].sum() + sum(record["b"]) + record["c"].sum())

    def make(n: int, seconds: float) -> Any:
        import time

        import numpy as np

        at_work()
        time.sleep(seconds)
        return [np.full(n, float(i)) for i in range(3)]

    def total_of_list(arrays: Any) -> float:
        return float(sum(x.sum() for x in arrays))

    def echo(x: Any, stdout: Any = None) -> str:
        return f"sleep 0.1; echo {int(x.sum())}"

    def read(path: str, done: Any) -> int:
        from pathlib import Path

        return int(Path(path).read_text())

    def once(x: Any, i: int) -> Any:
        return x + i

    app = apps.python_app
    slow_app, total_app, make_app = app(slow), app(total), app(make)
    cached_app = apps.python_app(once, cache=True)
    echo_app, read_app = apps.bash_app(echo), app(read)

    def joined(x: Any, k: int) -> Any:
        return [total_app(slow_app(x, float(i), 0.05)) for i in range(k)]

    def one_joined(x: Any) -> Any:
        return slow_app(slow_app(x, 2.0, 0.05), 3.0, 0.05)

    join_app, join_one_app = apps.join_app(joined), apps.join_app(one_joined)

    def pause() -> float:
        return choose.choice((0.0, 0.02, 0.1, 0.3))

    length = min(LENGTHS) if small else choose.choice(LENGTHS)
    base = np.arange(length, dtype=float)
    calls: list[Callable[[], Iterator[tuple[str, Any, Any]]]] = []

    def call(maker: Callable[[], Iterator[tuple[str, Any, Any]]]) -> None:
        calls.append(maker)

    @call
    def arguments() -> Iterator[tuple[str, Any, Any]]:
        for i in range(4):
            yield "argument", total_app(base, pause()), base.sum()
            own = base + i
            yield "own argument", total_app(own, pause()), own.sum()
            own[:] = 0  # the task has the content of the call

    @call
    def put() -> Iterator[tuple[str, Any, Any]]:
        proxy = apps.put(base * 7)
        for _ in range(3):
            yield "put", total_app(proxy, pause()), base.sum() * 7

    @call
    def chains() -> Iterator[tuple[str, Any, Any]]:
        for i in range(3):
            future, value = slow_app(base + i, 2.0, pause()), (base + i) * 2
            for _ in range(3):
                future, value = slow_app(future, 1.5, pause()), value * 1.5
            yield "end of a chain", future, value
            yield "total of a chain", total_app(future), value.sum()

    @call
    def containers() -> Iterator[tuple[str, Any, Any]]:
        for i in range(2):
            made = slow_app(base, 3.0, pause())
            record = app(nested)({"deep": [base + i, base * i]}, inputs=[made, base])
            a, b, c = base + i + 1, [base.sum() * 3, base.sum()], base * i
            yield "total of a record", app(parts_total)(record), a.sum() + sum(b) + c.sum()
            yield "part of a record", total_app(record["a"]), a.sum()
            yield "item of a record", record["c"], c

    @call
    def lists() -> Iterator[tuple[str, Any, Any]]:
        for _ in range(2):
            made = make_app(length, pause())
            yield "list", app(total_of_list)(made), 3.0 * length
            yield "list itself", made, [np.full(length, float(i)) for i in range(3)]

    @call
    def joins() -> Iterator[tuple[str, Any, Any]]:
        yield "join of many", join_app(base, 3), [0.0, base.sum(), base.sum() * 2]
        yield "join of one", join_one_app(base + 5), (base + 5) * 6
        yield "total of a join", total_app(join_one_app(base + 6)), ((base + 6) * 6).sum()

    @call
    def commands() -> Iterator[tuple[str, Any, Any]]:
        for i in range(2):
            path = str(Path(directory, f"out-{i}"))
            x = base + i
            # A try that is cut off may have written, so each starts the file anew.
            done = echo_app(x, stdout=(path, "w"))
            yield "command", read_app(path, done), int(x.sum())

    @call
    def cached() -> Iterator[tuple[str, Any, Any]]:
        for i in range(3):
            yield "cached", cached_app(base, i), base + i
        yield "cached again", cached_app(base.copy(), 1), base + 1

    @call
    def proxied() -> Iterator[tuple[str, Any, Any]]:
        result = slow_app(base, 4.0, pause())
        yield "through a future", total_app(result), base.sum() * 4
        for i in range(2):
            slow_app(base + 100 + i, 2.0, pause())  # nobody wants it

    choose.shuffle(calls)
    assert StoreApps  # imported before the calls, which are quick then
    return [each for make_calls in calls for each in make_calls()]


# -- killing


def managers_of(session: int) -> list[psutil.Process]:
    """Return the managers of a program."""
    return [process for process in members(session) if is_manager(process)]


def is_manager(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        command = process.cmdline()
        return len(command) > 1 and command[1].endswith(MANAGER)
    return False


def children_of(manager: psutil.Process) -> list[psutil.Process]:
    """Return what a manager has started, oldest first."""
    with contextlib.suppress(psutil.Error):
        return sorted(manager.children(recursive=True), key=psutil.Process.create_time)
    return []


def workers_of(manager: psutil.Process | None) -> list[psutil.Process]:
    """Return the workers of a manager."""
    if manager is None:
        return []
    with contextlib.suppress(psutil.Error):
        spawned = [each for each in children_of(manager) if "spawn_main" in str(each.cmdline())]
        return spawned[1:]  # the first one is a server that manager and workers share
    return []


def is_busy(worker: psutil.Process, directory: str) -> bool:
    """Say whether a worker has had a task, and does anything but wait for one."""
    if not Path(directory, f"worker-{worker.pid}").exists():
        return False
    with contextlib.suppress(OSError):
        call = Path(f"/proc/{worker.pid}/syscall").read_text().split()[0]
        return call not in WAITING
    return False


def is_void(directory: str) -> bool:
    """Say whether a worker was killed between tasks after all."""
    logs = Path(directory, "run").glob("000/*/block-*/*/manager.log")
    return any("was not busy when it died" in log.read_text() for log in logs)


def kill(kind: str, program: int, directory: str, choose: random.Random) -> int:
    """Kill something of a kind, if tasks are under way; return how many processes that were."""
    # Managers are no children of the program: a batch system would have started them.
    managers = managers_of(program)
    manager = choose.choice(managers) if managers else None
    busy = [each for each in workers_of(manager) if is_busy(each, directory)]
    if kind == "submit":
        victims = [psutil.Process(program)]
    elif manager is None or not busy:
        victims = []
    elif kind == "worker":
        victims = [choose.choice(busy)]
    elif kind == "manager":
        victims = [manager]
    else:
        victims = [*children_of(manager), manager]
    for victim in victims:
        with contextlib.suppress(psutil.Error):
            victim.kill()
    return len(victims)


def round_of(kind: str, seed: int, *, small: bool = False) -> tuple[list[str], str]:
    """Run a program and kill parts of it; return what was wrong, and what was hit."""
    choose = random.Random(seed)
    directory = tempfile.mkdtemp(prefix="chaos-parsl-", dir="/dev/shm")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-W", "ignore", __file__, "--program", str(seed), directory]
    if small:
        command.append("--small")
    with Path(directory, "errors").open("w") as log:
        child = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            cwd=directory,
        )
    assert child.stdout is not None
    hung = threading.Timer(SECONDS_PER_ROUND, hang, (child,))
    hung.start()
    try:
        first = child.stdout.readline()
        if not first:
            return [f"the program did not start: {errors(directory)}"], ""
        place = json.loads(first)["place"]
        killed = 0
        for _ in range(1 if small else choose.randint(1, 3)):
            threading.Event().wait(choose.uniform(0.0, 2.5))
            hit = 0
            while not hit and child.poll() is None:
                hit = kill(kind, child.pid, directory, choose)
                threading.Event().wait(0 if hit else 0.003)
            killed += hit
            if kind == "worker":
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(SECONDS_TO_NOTICE)
                if is_void(directory):
                    return [], "a worker between tasks, which Parsl does not survive"
            if kind == "submit":
                break
        # First: what outlives the program has its standard output, too.
        code = child.wait()
        if not hung.is_alive():
            return [f"hangs: {errors(directory)}"], ""
        if kind == "submit" and code == -signal.SIGKILL:
            return after_a_kill(place, child.pid, choose), "the program"
        last = child.stdout.readline() if code == 0 else ""
        if not last:
            return [f"exit code {code}: {errors(directory)}"], ""
        found = json.loads(last)
        return found["wrong"], f"{killed} processes and {len(found['lost'])} tries"
    finally:
        hung.cancel()
        end(child.pid)
        shutil.rmtree(directory, ignore_errors=True)


def after_a_kill(place: str, session: int, choose: random.Random) -> list[str]:
    """Start another program once the workers of a killed one are gone, and see what it leaves."""
    code = "from proxystore_parsl import StoreApps; StoreApps().put([0])"
    if choose.random() < 0.5:  # while they still work: they must not bring it back for good
        subprocess.run([sys.executable, "-c", code], check=True)
    # Parsl's workers go on with what they have, and would then wait for ever.
    threading.Event().wait(3)
    end(session)
    subprocess.run([sys.executable, "-c", code], check=True)
    if not Path(place).name.startswith("embedded-"):
        return []  # the user's store: what is in it is the user's
    return [f"left by a killed program: {os.listdir(place)}"] if Path(place).exists() else []


def members(session: int) -> list[psutil.Process]:
    """Return what a program has started, and what that has."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end(session: int) -> None:
    """Kill what is left of a program: interchanges, and workers without a manager."""
    for process in members(session):
        with contextlib.suppress(psutil.Error):
            process.kill()


def hang(child: subprocess.Popen[str]) -> None:
    """Have a program say where it is, and end it."""
    child.send_signal(signal.SIGUSR1)
    threading.Event().wait(1)
    child.kill()


def errors(directory: str) -> str:
    return Path(directory, "errors").read_text()[-4000:]


def main() -> int:
    """Run the rounds and print what was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--small", action="store_true", help="small arrays, and one kill a round")
    parser.add_argument("--program", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.program:
        return program(int(options.program[0]), options.program[1], small=options.small)
    kinds = options.kinds.split(",")
    bad: Counter[str] = Counter()
    for number in range(options.rounds):
        kind, seed = kinds[number % len(kinds)], options.seed + number
        start = time.monotonic()
        wrong, hit = round_of(kind, seed, small=options.small)
        took = time.monotonic() - start
        print(f"{kind:8} seed {seed}: {took:.0f} s, killed {hit}: {wrong or 'well'}")
        sys.stdout.flush()
        for each in wrong:
            left, hangs = each.startswith("left"), each.startswith("hangs")
            bad["left" if left else "hangs" if hangs else "wrong"] += 1
    print(
        f"{options.rounds} rounds: {bad['wrong']} wrong results, "
        f"{bad['left']} with objects left, {bad['hangs']} hangs"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
