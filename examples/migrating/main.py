"""A program written for ProxyStore 1.1: it runs on both distributions, and prints the same."""

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from proxystore.connectors.file import FileConnector
from proxystore.proxy import Proxy, is_resolved
from proxystore.store import Store, get_store, store_registration
from proxystore.store.lifetimes import ContextLifetime
from proxystore.store.ref import OwnedProxy, borrow, into_owned


def simulate(parameters: dict[str, float], seed: int) -> Proxy[np.ndarray]:
    """Make a large array in a worker, and return a proxy of it."""
    noise = np.random.default_rng(seed).normal(size=(1000, 500))
    store = get_store(parameters)  # the one that its argument has come from
    assert store is not None
    return store.proxy(parameters["scale"] * noise)


def width(data: np.ndarray) -> float:
    """Know nothing of proxies."""
    return float(data.std())


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = Store("migrating", FileConnector(os.path.join(directory, "objects")), cache_size=4)
        with store_registration(store):
            pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
            with pool, ContextLifetime(store) as lifetime:
                parameters = store.proxy({"scale": 0.25}, lifetime=lifetime)
                made = [pool.submit(simulate, parameters, seed) for seed in range(4)]
                widths = [pool.submit(width, future.result()) for future in made]
                print("widths:", *(f"{future.result():.2f}" for future in widths))

                later = store.future()
                waiting = pool.submit(float, later.proxy())
                later.set_result(0.5)
                print("after it was set:", waiting.result())

            owned: OwnedProxy[list[int]] = store.owned_proxy([1, 2, 3])
            print("borrowed:", sum(borrow(owned)))

            key = store.put({"rate": 0.1})
            settings = into_owned(store.proxy_from_key(key))
            print("resolved before its use:", is_resolved(settings), settings["rate"])
            del settings
            print("without its owner:", store.get(key))
        store.close()
        print("left:", os.listdir(directory))


# The processes of the pool import this file too.
if __name__ == "__main__":
    main()
