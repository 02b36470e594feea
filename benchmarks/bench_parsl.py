"""Parsl's HighThroughputExecutor, two workers, warm: plain, with the other distribution, with us.

The other distribution twice: with its proxies, made by hand, and with its serializer for Parsl,
which passes arguments by reference, and results as Parsl does.

Each is measured in a process of its own, one after the other, on the same arrays.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = "/dev/shm"
SIZE = 100_000_000  # bytes of the large array
TASKS = 8
SMALL_TASKS = 1_000

SUBMIT = "the submission of each of those"

# What is measured, and how often: the plain way takes seconds.
ROWS = {
    "one 100 MB argument": 5,
    "one 100 MB array to 8 tasks": 3,
    "the same, stored before": 3,
    "100 MB result, first element": 5,
    "100 MB result to the next task": 5,
    "8 x 100 MB results to one task": 3,
    "1 MB argument": 25,
    "10 kB argument": 25,
    "1,000 tasks without data": 3,
    SUBMIT: 3,
}
MEMORY_ROWS = (
    "memory of the submit process, MB more",
    "memory of the interchange, MB more",
)


# -- the apps; they import what they need, since workers get them by value


def first(x: Any) -> float:
    return float(x[0])


def produce(n: int) -> Any:
    import numpy as np

    return np.ones(n)


def first_of_all(inputs: Any = ()) -> float:
    return float(sum(x[0] for x in inputs))


def nothing(i: int) -> int:
    return i


def produce_proxy(config: Any, n: int) -> Any:
    import numpy as np

    from proxystore.store import get_or_create_store

    # In a tuple: a proxy by itself is not a result that Parsl can handle.
    return (get_or_create_store(config).proxy(np.ones(n), populate_target=False),)


def first_of_tuple(x: Any) -> float:
    return float(x[0][0])


def first_of_all_tuples(inputs: Any = ()) -> float:
    return float(sum(x[0][0] for x in inputs))


def changed(x: Any) -> Any:
    """Return an array after changing it: nobody has stored, or hashed, that content before."""
    x[0] += 1
    return x


def submitting(app: Callable[[int], Any]) -> float:
    """Return what a call costs the caller, in seconds; the results are waited for, untimed."""
    start = time.perf_counter()
    futures = [app(i) for i in range(SMALL_TASKS)]
    elapsed = time.perf_counter() - start
    for future in futures:
        future.result()
    return elapsed / SMALL_TASKS


# -- four ways to run them; each gives a function for each row


def plain() -> dict[str, Callable[[], Any]]:
    """Return what Parsl does by itself, as it is and as the others are measured."""
    import parsl

    return rows(parsl.python_app)


def ours() -> dict[str, Callable[[], Any]]:
    """Return what this distribution's decorator does, on the default store."""
    from proxystore_parsl import default_apps, python_app

    return rows(python_app, default_apps().put)


def rows(
    app: Callable[..., Any], put: Callable[[Any], Any] | None = None
) -> dict[str, Callable[[], Any]]:
    """Return the measurements for a decorator that takes the place of Parsl's."""
    import numpy as np

    large = np.random.default_rng(0).random(SIZE // 8)
    middle, little = large[:125_000].copy(), large[:1_250].copy()
    take, make, reduce, idle = app(first), app(produce), app(first_of_all), app(nothing)

    def fan(x: Any) -> None:
        for future in [take(x) for _ in range(TASKS)]:
            future.result()

    return {
        "one 100 MB argument": lambda: take(changed(large)).result(),
        "one 100 MB array to 8 tasks": lambda: fan(changed(large)),
        **({"the same, stored before": lambda: fan(put(changed(large)))} if put else {}),
        "100 MB result, first element": lambda: make(SIZE // 8).result()[0],
        "100 MB result to the next task": lambda: take(make(SIZE // 8)).result(),
        "8 x 100 MB results to one task": lambda: reduce(
            inputs=[make(SIZE // 8) for _ in range(TASKS)]
        ).result(),
        "1 MB argument": lambda: take(changed(middle)).result(),
        "10 kB argument": lambda: take(changed(little)).result(),
        "1,000 tasks without data": lambda: [
            future.result() for future in [idle(i) for i in range(SMALL_TASKS)]
        ],
        SUBMIT: lambda: submitting(idle),
    }


def peer() -> dict[str, Callable[[], Any]]:
    """Return what its users write with the other distribution: proxies, by hand."""
    import numpy as np
    import parsl

    from proxystore.connectors.file import FileConnector
    from proxystore.store import Store
    from proxystore.store.utils import get_key

    store = Store("bench", FileConnector(os.environ["BENCH_DIR"]), register=True, cache_size=0)
    config = store.config()
    large = np.random.default_rng(0).random(SIZE // 8)
    middle, little = large[:125_000].copy(), large[:1_250].copy()
    app = parsl.python_app
    take, make, idle = app(first), app(produce_proxy), app(nothing)
    take_tuple, reduce = app(first_of_tuple), app(first_of_all_tuples)

    def proxy(x: Any) -> Any:
        # With the target's class and hash at hand: else Parsl has it fetched at the call.
        found = store.proxy(x, populate_target=True)
        del found.__proxy_target__
        return found

    def fan(tasks: int, x: Any) -> None:
        sent = proxy(x)
        for future in [take(sent) for _ in range(tasks)]:
            future.result()
        store.evict(get_key(sent))

    def result() -> float:
        (found,) = make(config, SIZE // 8).result()
        value = float(found[0])
        store.evict(get_key(found))
        return value

    def chain() -> None:
        made = make(config, SIZE // 8)
        take_tuple(made).result()
        store.evict(get_key(made.result()[0]))

    def collect() -> None:
        made = [make(config, SIZE // 8) for _ in range(TASKS)]
        reduce(inputs=list(made)).result()
        for future in made:
            store.evict(get_key(future.result()[0]))

    return {
        "one 100 MB argument": lambda: fan(1, changed(large)),
        "the same, stored before": lambda: fan(TASKS, changed(large)),
        "100 MB result, first element": result,
        "100 MB result to the next task": chain,
        "8 x 100 MB results to one task": collect,
        "1 MB argument": lambda: fan(1, changed(middle)),
        "10 kB argument": lambda: take(changed(little)).result(),
        "1,000 tasks without data": lambda: [
            future.result() for future in [idle(i) for i in range(SMALL_TASKS)]
        ],
        SUBMIT: lambda: submitting(idle),
    }


def plugin() -> dict[str, Callable[[], Any]]:
    """Return what the other distribution's serializer for Parsl does with plain apps."""
    import numpy as np
    import parsl
    from parsl.serialize import facade
    from parsl.serialize.proxystore import ProxyStoreSerializer

    from proxystore.connectors.file import FileConnector
    from proxystore.store import Store

    directory = os.environ["BENCH_DIR"]
    store = Store("bench", FileConnector(directory), register=True, cache_size=0)
    # As its documentation has it: it is used only where Parsl's own are gone.
    facade.additional_methods_for_deserialization.update(facade.methods_for_data)
    facade.methods_for_data.clear()

    def is_large(x: Any) -> bool:
        return type(x) is np.ndarray and x.nbytes > 100_000

    facade.register_method_for_data(ProxyStoreSerializer(store=store, should_proxy=is_large))

    def emptied(function: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            result = function()
            for path in Path(directory).iterdir():  # else everything stays
                path.unlink()
            return result

        return call

    made = rows(parsl.python_app)
    return {row: emptied(function) for row, function in made.items() if "result" not in row}


def peak_mb(pid: int) -> float:
    """Return the largest resident memory of a process since it was last reset, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def reset_peak(pid: int) -> float:
    """Have the peak of a process's memory start here, and return it."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_mb(pid)


def two_workers(run_dir: str) -> Any:
    """Return the configuration of an executor with two workers on this machine."""
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        address="127.0.0.1",
        encrypted=False,
        max_workers_per_node=2,
        cores_per_worker=1e-6,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    return Config(executors=[executor], run_dir=run_dir, strategy="none", initialize_logging=False)


def measure(way: str) -> dict[str, float]:
    """Return the median time of each row in seconds, and the peak memory in MB."""
    import parsl

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as run_dir, parsl.load(two_workers(run_dir)) as dfk:
        executor = dfk.config.executors[0]
        todo = {"plain": plain, "peer": peer, "plugin": plugin, "ours": ours}[way]()
        for _ in range(20):  # both workers have imported everything
            todo["1 MB argument"]()
            todo["10 kB argument"]()
        interchange = executor.interchange_proc
        assert interchange is not None, "it was started"
        watched = dict(zip(MEMORY_ROWS, (os.getpid(), interchange.pid), strict=True))
        before = {row: reset_peak(pid) for row, pid in watched.items()}
        large = True  # those rows come first
        for row, function in todo.items():
            large = large and row != "1 MB argument"
            if before and not large:
                found.update({row: peak_mb(pid) - before[row] for row, pid in watched.items()})
                before = {}
            if way not in ("plain", "plugin") and large:
                function()  # the first use of memory that the kernel has just handed out is slow
            repeats = 1 if way == "plain" and large else ROWS[row]
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                result = function()
                elapsed = time.perf_counter() - start
                times.append(result if row == SUBMIT else elapsed)
            found[row] = statistics.median(times)
    return found


def run(python: str, way: str) -> dict[str, float]:
    """Measure in a process of its own."""
    directory = tempfile.mkdtemp(prefix="proxystore-bench-", dir=MEMORY)
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        child = subprocess.run(
            [python, "-W", "ignore", __file__, way],
            env={**os.environ, "PATH": path, "BENCH_DIR": directory},
            stdout=subprocess.PIPE,
            check=True,
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


def main() -> None:
    ways = {"plain": run(sys.executable, "plain")}
    other = os.environ.get("PROXYSTORE_PEER_PYTHON")
    if other:
        ways["peer"] = run(other, "peer")
        ways["plugin"] = run(other, "plugin")
    ways["ours"] = run(sys.executable, "ours")

    # Who has no way to store an array before has stored it at the call, and the reverse.
    fan, stored = "one 100 MB array to 8 tasks", "the same, stored before"
    ways["plain"][stored] = ways["plain"][fan]
    print(f"{'seconds':46}" + "".join(f"{way:>10}" for way in ways) + "   plain/ours  peer/ours")
    for row in [*ROWS, *MEMORY_ROWS]:
        values = {way: found.get(row) for way, found in ways.items()}
        line = f"{row:46}"
        line += "".join(f"{'-' if v is None else format(v, '10.4g'):>10}" for v in values.values())
        for way in ("plain", "peer"):
            value, mine = values.get(way), values["ours"]
            line += f"{'-' if not value or not mine else f'{value / mine:.1f} x':>12}"
        print(line)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
