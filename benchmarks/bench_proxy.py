"""What a resolved proxy costs over the bare object, beside the other distribution's proxy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import timeit
from typing import Any

# Operation, how many nanoseconds it may take (None: no target), and what these are counted from.
OPERATIONS: dict[str, tuple[int | None, str]] = {
    "len(x)": (25, "above bare"),
    "x[0]": (25, "above bare"),
    "x == other": (25, "above bare"),
    "isinstance(x, list)": (300, "in all"),
    "x.append": (600, "in all"),
    "for _ in x: pass": (None, ""),
    "hash(text)": (None, ""),
    "Proxy(list)": (None, ""),
    "len(Proxy(list))": (None, ""),
    "loads(dumps(x))": (None, ""),
}
# These say nothing of a bare object.
PROXY_ONLY = {"Proxy(list)", "len(Proxy(list))", "loads(dumps(x))"}
ROUNDS = 3


def measure() -> dict[str, list[float | None]]:
    """Return nanoseconds for each operation, on a bare object and on a proxy."""
    from proxystore.proxy import Proxy

    bare = [1, 2, 3]
    proxy = Proxy(list, target=bare)
    text = Proxy(str, target="text")
    return {
        operation: [
            None if operation in PROXY_ONLY else time(operation, x=bare, text="text"),
            time(operation, x=proxy, text=text, Proxy=Proxy),
        ]
        for operation in OPERATIONS
    }


def time(operation: str, **names: Any) -> float:
    """Return the nanoseconds of the fastest of several runs: what else runs only adds to it."""
    setup = "from pickle import dumps, loads"
    timer = timeit.Timer(operation, setup, globals={"other": [1, 2, 3], **names})
    number, seconds = timer.autorange()
    number = max(1, int(number * 0.05 / seconds))
    return min(timer.repeat(7, number)) / number * 1e9


def measure_in(python: str) -> dict[str, list[float | None]]:
    """Measure in a process of another interpreter."""
    # -I for the peer: not our PYTHONPATH, not this folder.
    flags = [] if python == sys.executable else ["-I"]
    command = [python, *flags, __file__, "--measure"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[float | None]] = json.loads(run.stdout)
    return found


def fastest(rounds: list[dict[str, list[float | None]]], operation: str, column: int) -> float:
    """Return the smallest of what several rounds have found; nan if they found nothing."""
    times = [found[operation][column] for found in rounds]
    return min((time for time in times if time is not None), default=float("nan"))


def main() -> None:
    peer = os.environ.get("PROXYSTORE_PEER_PYTHON")
    ours, theirs = [], []
    for _ in range(ROUNDS):  # in turn, so that a busy moment hits both
        ours.append(measure_in(sys.executable))
        if peer:
            theirs.append(measure_in(peer))

    line = "{:<21}{:>8}{:>8}{:>8}   {:<18}{:>8}{:>13}".format
    print(line("ns", "bare", "proxy", "more", "target", "peer", "peer / ours"))
    for operation, (target, counted) in OPERATIONS.items():
        bare, proxy = fastest(ours, operation, 0), fastest(ours, operation, 1)
        cells = [f"{bare:.0f}", f"{proxy:.0f}", f"{proxy - bare:.0f}", "", "", ""]
        if target is not None:
            met = (proxy - bare if counted == "above bare" else proxy) <= target
            cells[3] = f"{target} {counted}" + ("" if met else ", MISSED")
        if theirs:
            other = fastest(theirs, operation, 1)
            cells[4:] = [f"{other:.0f}", f"{other / proxy:.1f}"]
        print(line(operation, *cells).replace("nan", "  -").rstrip())
    if not theirs:
        print("\nNo peer column: PROXYSTORE_PEER_PYTHON is not set.")


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        print(json.dumps(measure()))
    else:
        main()
