"""Spectra of recordings, by processes of the standard library: arrays travel as proxies."""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore.store.executor import ProxyType, StoreExecutor

RATE = 1000.0  # samples a second


def recorded(frequency: float) -> np.ndarray:
    """Return 1,000 s of a tone in noise, 8 MB."""
    times = np.arange(1_000_000) / RATE
    noise = np.random.default_rng(0).normal(size=len(times))
    return np.sin(2 * np.pi * frequency * times) + noise


def spectrum(recording: np.ndarray) -> np.ndarray:
    """Return the power at each frequency; both are large, and neither goes through a pipe."""
    return np.abs(np.fft.rfft(recording)) ** 2


def loudest(power: np.ndarray) -> float:
    return float(np.fft.rfftfreq(2 * (len(power) - 1), 1 / RATE)[power.argmax()])


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="spectra-", dir="/dev/shm") as directory:
        store = Store("spectra", FileConnector(f"{directory}/objects"), register=True)
        pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
        with StoreExecutor(pool, store, should_proxy=ProxyType(np.ndarray)) as executor:
            powers = list(executor.map(spectrum, map(recorded, (50, 125, 250, 440))))
            # Each result is a proxy, read here for the first time; passed on, it stays one.
            print("shapes:", *(power.shape for power in powers))
            print("tones: ", *executor.map(loudest, powers), "Hz")


# The processes of the pool import this file too.
if __name__ == "__main__":
    main()
