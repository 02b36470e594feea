"""What it takes to make, lend and destroy owners, beside the other distribution's."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# A workflow of the other distribution's authors: that many results, all dropped at its end.
OWNERS = 16_000
ROUNDS = 5
ROUNDS_OF_PEER = 1  # the peer's destruction takes time that is quadratic in the number

# Milliseconds that each step may take; None: no target.
STEPS: dict[str, int | None] = {
    "store.put + factory + Proxy": None,
    "the same, + into_owned": None,
    "destroy the owners": None,
    "  of that: connector.evict": None,
    "  of that: the rest": 50,
    "borrow + give back": None,
    "pickle + unpickle": None,
}


def measure(rounds: int) -> dict[str, float]:
    """Return the milliseconds of each step, of the fastest of several rounds."""
    found = [measure_once() for _ in range(rounds)]
    return {step: min(times[step] for times in found) for step in found[0]}


def measure_once() -> dict[str, float]:
    import pickle

    from proxystore.connectors.local import LocalConnector
    from proxystore.store import Store
    from proxystore.store.ref import borrow

    with Store("bench-ownership", LocalConnector(), cache_size=0, register=True) as store:
        times = {}

        proxies: list[Any] = []
        times["store.put + factory + Proxy"] = timed(
            lambda: proxies.extend(store.proxy(i) for i in range(OWNERS))
        )
        keys = [proxy.__proxy_factory__.key for proxy in proxies]
        owners: list[Any] = []
        times["the same, + into_owned"] = timed(
            lambda: owners.extend(store.owned_proxy(i) for i in range(OWNERS))
        )
        times["borrow + give back"] = timed(lambda: [borrow(owner) and None for owner in owners])
        times["destroy the owners"] = timed(owners.clear)

        evict = store.connector.evict
        evictions = timed(lambda: [evict(key) for key in keys])
        times["  of that: connector.evict"] = evictions
        times["  of that: the rest"] = times["destroy the owners"] - evictions

        owner = store.owned_proxy(1)

        def there_and_back() -> None:
            nonlocal owner
            for _ in range(OWNERS):
                owner = pickle.loads(pickle.dumps(owner))

        times["pickle + unpickle"] = timed(there_and_back)
    return times


def timed(function: Callable[[], object]) -> float:
    """Return the milliseconds that a call takes, without the garbage collector's part in it."""
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    function()
    elapsed_ms = (time.perf_counter() - start) * 1e3
    gc.enable()
    return elapsed_ms


def measure_in(python: str, rounds: int) -> dict[str, float]:
    """Measure in a process of another interpreter."""
    # -I for the peer: not our PYTHONPATH, not this folder.
    flags = [] if python == sys.executable else ["-I"]
    command = [python, *flags, __file__, "--measure", str(rounds)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(run.stdout)
    return found


def main() -> None:
    peer = os.environ.get("PROXYSTORE_PEER_PYTHON")
    ours = measure_in(sys.executable, ROUNDS)
    theirs = measure_in(peer, ROUNDS_OF_PEER) if peer else {}

    print(f"{OWNERS} small objects in a LocalConnector")
    line = "{:<30}{:>8}{:>8}   {:<12}{:>9}{:>13}".format
    print(line("ms", "in all", "us each", "target", "peer", "peer / ours"))
    for step, target in STEPS.items():
        cells = [f"{ours[step]:.0f}", f"{ours[step] / OWNERS * 1e3:.2f}", "", "", ""]
        if target is not None:
            cells[2] = f"{target}" + ("" if ours[step] <= target else ", MISSED")
        if step in theirs:
            cells[3:] = [f"{theirs[step]:.0f}", f"{theirs[step] / ours[step]:.1f}"]
        print(line(step, *cells).rstrip())
    if not theirs:
        print("\nNo peer column: PROXYSTORE_PEER_PYTHON is not set.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]))))
    else:
        main()
