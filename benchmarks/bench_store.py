"""The store over files in /dev/shm: put and get against write(2), small objects, pickles, import.

The same measurements run under the interpreter of the other distribution, if there is one.
"""

from __future__ import annotations

import json
import os
import pickle
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
# Size in bytes, repeats.
SIZES = {"1 MB": (10**6, 200), "100 MB": (10**8, 9), "1 GB": (10**9, 5)}


# -- measured in each interpreter: only names that both distributions have


def seconds(function: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def timed(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Return how long a call takes, in seconds, and what it returns."""
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def each(function: Callable[[], Any], calls: int) -> float:
    """Return the median time of a call, in microseconds, over batches of calls."""
    batches = [
        seconds(lambda: [function() for _ in range(calls // 20)]) / (calls // 20) for _ in range(20)
    ]
    return statistics.median(batches) * 1e6


def memory_kb(field: str) -> int:
    """Return a line of /proc/self/status, in kB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0])


def extra_memory(function: Callable[[], Any]) -> int:
    """Return by how much one call raises this process's peak, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory_kb("VmRSS")
    function()
    return max(0, memory_kb("VmHWM") - before) * 1024


def write_once(path: str, data: memoryview) -> float:
    """Return how long one open, write(2) and close of `data` takes: the floor of a put."""
    start = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    written = os.write(fd, data)
    os.close(fd)
    elapsed = time.perf_counter() - start
    os.unlink(path)
    assert written == data.nbytes
    return elapsed


def large_objects(store: Any, directory: str) -> dict[str, dict[str, float]]:
    """Measure put and get of arrays, the floor in between."""
    import numpy as np

    results = {}
    for name, (size, repeats) in SIZES.items():
        array = np.random.default_rng(0).integers(0, 255, size, np.uint8)
        times: dict[str, list[float]] = {"floor": [], "put": [], "first get": [], "get": []}
        for _ in range(repeats):
            times["floor"].append(write_once(f"{directory}/floor", memoryview(array)))
            put_took, key = timed(store.put, array)
            times["put"].append(put_took)
            # Writing has just driven everything else out of the processor's caches: a get
            # right after it is another measurement than one in between other work.
            for kind in ("first get", "get", "get", "get"):
                took, found = timed(store.get, key)
                times[kind].append(took)
            assert found.flags.writeable
            found[0] ^= 1
            assert store.get(key)[0] == array[0], "writing changed the stored object"
            del found  # the last mapping of an evicted file frees it: not part of a get
            store.evict(key)
        memory = extra_memory(lambda array=array: store.evict(store.put(array)))
        results[name] = {kind: statistics.median(values) for kind, values in times.items()}
        results[name]["memory"] = memory / size
    return results


def small_objects(store: Any) -> dict[str, float]:
    """Measure operations on 1 kB and on proxies, in microseconds."""
    data = os.urandom(1000)
    keys = [store.put(data) for _ in range(2000)]
    unread = iter(keys)
    proxy = store.proxy(data, populate_target=False)
    pickled = pickle.dumps(proxy)
    return {
        "put 1 kB (us)": each(lambda: store.put(data), 2000),
        "get 1 kB (us)": each(lambda: store.get(next(unread)), 2000),
        "proxy 1 kB, target not kept (us)": each(
            lambda: store.proxy(data, populate_target=False), 2000
        ),
        "pickle.dumps(proxy) (us)": each(lambda: pickle.dumps(proxy), 20_000),
        "pickle.loads(proxy) (us)": each(lambda: pickle.loads(pickled), 20_000),
        "pickled proxy (bytes)": len(pickled),
        "pickled proxy of an array (bytes)": len(pickle.dumps(_array_proxy(store))),
    }


def _array_proxy(store: Any) -> Any:
    import numpy as np

    return store.proxy(np.zeros(10), populate_target=True)


def imports() -> dict[str, float]:
    """Measure a cold interpreter that imports the store: time and modules above a bare one."""
    script = (
        "import sys, time; n = len(sys.modules); t = time.perf_counter(); "
        "import proxystore.store; print(time.perf_counter() - t, len(sys.modules) - n)"
    )
    runs = []
    for _ in range(7):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        runs.append([float(word) for word in done.stdout.split()])
    return {
        "import proxystore.store (ms)": statistics.median(run[0] for run in runs) * 1e3,
        "modules imported": runs[0][1],
    }


def measure() -> None:
    """Print all measurements of this interpreter as JSON."""
    from proxystore.connectors.file import FileConnector
    from proxystore.store import Store

    directory = tempfile.mkdtemp(dir=MEMORY)
    try:
        # Two operations on nothing else, so that lazily imported code is there.
        store = Store("bench", FileConnector(f"{directory}/objects"), cache_size=0)
        store.get(store.put(b"warm"))
        results = {
            "large": large_objects(store, directory),
            "small": {**small_objects(store), **imports()},
        }
        store.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(results))


# -- printed by this one


TARGETS = {
    "put 1 kB (us)": 25,
    "get 1 kB (us)": 20,
    "proxy 1 kB, target not kept (us)": 20,
    "pickle.dumps(proxy) (us)": 4,
    "pickle.loads(proxy) (us)": 4,
    "pickled proxy (bytes)": 300,
    "pickled proxy of an array (bytes)": 300,
    "import proxystore.store (ms)": 350,
    "modules imported": 300,
}


def run(python: str) -> dict[str, Any]:
    """Return the measurements of an interpreter."""
    done = subprocess.run(
        [python, __file__, "--measure"], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print both tables."""
    ours = run(sys.executable)
    peer_python = os.environ.get("PROXYSTORE_PEER_PYTHON")
    peer = run(peer_python) if peer_python else None

    print(f"{'array':>8} {'floor':>10} {'put':>10} {'/ floor':>8} {'target':>7}", end="")
    print(f" {'get':>7} {'target':>7} {'first':>7} {'memory':>7} {'target':>7}", end="")
    print(f" {'peer put':>9} {'peer get':>9}" if peer else "   (no peer)")
    for name, row in ours["large"].items():
        print(f"{name:>8} {row['floor'] * 1e3:7.3f} ms {row['put'] * 1e3:7.3f} ms", end="")
        print(f" {row['put'] / row['floor']:7.2f}x {'1.3x':>7} {row['get'] * 1e6:4.0f} us", end="")
        print(f" {'100 us':>7} {row['first get'] * 1e6:4.0f} us", end="")
        print(f" {row['memory']:7.1%} {'5%':>7}", end="")
        if peer:
            other = peer["large"][name]
            print(f" {other['put'] / row['put']:8.1f}x {other['get'] / row['get']:8.0f}x", end="")
        print()

    print(f"\n{'':>36} {'ours':>9} {'target':>7}", end="")
    print(f" {'peer':>9} {'peer/ours':>10}" if peer else "")
    for name, value in ours["small"].items():
        print(f"{name:>36} {value:9.1f} {TARGETS[name]:7}", end="")
        if peer:
            print(f" {peer['small'][name]:9.1f} {peer['small'][name] / value:9.1f}x", end="")
        print()


if __name__ == "__main__":
    measure() if "--measure" in sys.argv else main()
