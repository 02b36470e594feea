"""The store over Redis on a Unix socket, against redis-py's SET and GET of the same bytes.

All columns of a line are measured in turns, since what the machine does besides changes.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import redis

from proxystore.connectors.redis import RedisConnector
from proxystore.serialize import frames
from proxystore.store import Store
from proxystore.testing.redis_server import RedisServer

# Size in bytes, repeats.
SIZES = {"1 MB": (10**6, 100), "100 MB": (10**8, 9)}
BATCH = 1000


def seconds(function: Callable[..., Any], *args: Any) -> float:
    """Return how long a call takes; what it returns is freed afterwards."""
    start = time.perf_counter()
    result = function(*args)
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def in_turns(repeats: int, **functions: Callable[[], Any]) -> dict[str, float]:
    """Return the median time of each function, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return {name: statistics.median(values) for name, values in times.items()}


def large(client: Any, store: Store[RedisConnector], size: int, repeats: int) -> dict[str, float]:
    """Measure put and get of one array."""
    connector = store.connector
    array = np.random.default_rng(0).integers(0, 255, size, np.uint8)
    data = array.tobytes()
    client.set("plain", data)
    key, object_key, target = connector.put(data), store.put(array), connector.new_key()
    assert bytes(connector.get(key) or b"") == data
    assert (store.get(object_key) == array).all()
    times = in_turns(
        repeats,
        SET=lambda: client.set("plain", data),
        # The same key each time, as with SET: else memory grows.
        put=lambda: connector.set_buffers(target, (data,)),
        store_put=lambda: store.put_dumped(frames.dump(array).seal(), name=target.redis_key),
        GET=lambda: client.get("plain"),
        get=lambda: connector.get(key),
        store_get=lambda: store.get(object_key),
    )
    for used in (key, object_key, target):
        store.evict(used)
    client.delete("plain")
    return times


def batch(client: Any, store: Store[RedisConnector]) -> tuple[dict[str, float], dict[str, int]]:
    """Measure 1,000 times 1 kB, and count the commands that the server gets for each."""
    connector = store.connector
    items = [os.urandom(1000) for _ in range(BATCH)]
    keys = connector.put_batch(items)
    names = {f"plain{i}": item for i, item in enumerate(items)}
    assert [bytes(x or b"") for x in connector.get_batch(keys)] == items

    def evict(put: Callable[[], list[Any]]) -> None:
        client.delete(*(connector.prefix + key[0] for key in put()))

    functions: dict[str, Callable[[], Any]] = {
        "MSET": lambda: (client.mset(names), client.delete(*names)),
        "put_batch": lambda: evict(lambda: connector.put_batch(items)),
        "store.put_batch": lambda: evict(lambda: store.put_batch(items)),
        "MGET": lambda: client.mget(names),
        "get_batch": lambda: connector.get_batch(keys),
    }
    times = in_turns(20, **functions)
    commands = {}
    for name, function in functions.items():
        client.config_resetstat()
        function()
        stats = client.info("commandstats")
        commands[name] = sum(
            stats.get(f"cmdstat_{command}", {"calls": 0})["calls"]
            for command in ("get", "set", "mget", "mset")
        )
    return times, commands


def main() -> None:
    """Print both tables."""
    with RedisServer() as server:
        client = redis.StrictRedis(unix_socket_path=server.socket_path, socket_timeout=60)
        connector = RedisConnector(url=f"unix://{server.socket_path}")
        with Store("bench", connector, cache_size=0) as store:
            print(f"redis-py {redis.__version__}, server {client.info('server')['redis_version']}")
            print(f"{'':>8} {'SET':>10} {'connector':>10} {'store':>6} {'target':>7}", end="")
            print(f" {'GET':>10} {'connector':>10} {'store':>6} {'target':>7}")
            for name, (size, repeats) in SIZES.items():
                t = large(client, store, size, repeats)
                print(f"{name:>8} {t['SET'] * 1e3:7.2f} ms {t['put'] / t['SET']:9.2f}x", end="")
                print(f" {t['store_put'] / t['SET']:5.2f}x {'1.3x':>7}", end="")
                print(f" {t['GET'] * 1e3:7.2f} ms {t['get'] / t['GET']:9.2f}x", end="")
                print(f" {t['store_get'] / t['GET']:5.2f}x {'1.3x':>7}")

            print(f"\n{f'{BATCH} x 1 kB':>16} {'time':>9} {'commands':>9} {'target':>7}")
            times, commands = batch(client, store)
            for name, value in times.items():
                target = "" if name.isupper() else "1"
                print(f"{name:>16} {value * 1e3:6.2f} ms {commands[name]:9} {target:>7}")


if __name__ == "__main__":
    main()
