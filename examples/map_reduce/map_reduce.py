"""Counting words by map and reduce, as tasks of a Dask client: of any, plain or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np


def word_counts(client: Any, texts: Iterable[Any], fan_in: int = 2) -> Any:
    """Return a future of how often each word is in the texts, a `Counter`.

    Args:
        client: Has `submit`, as `distributed.Client`.
        texts: Each a `str`, or a future of one that a task makes, such as `random_text`.
        fan_in: How many counts a task of the reduction adds, at most; 2 or more.

    Raises:
        ValueError: There are no texts, or `fan_in` is too small.
    """
    if fan_in < 2:
        raise ValueError(f"fan_in must be 2 or more, got {fan_in}")
    counts = [client.submit(counted, text) for text in texts]
    if not counts:
        raise ValueError("there must be a text at least, got none")
    while len(counts) > 1:
        groups = [counts[i : i + fan_in] for i in range(0, len(counts), fan_in)]
        counts = [client.submit(added, group) for group in groups]
    return counts[0]


# -- the tasks


def random_text(words: int, seed: int) -> str:
    """Return words of four letters, the frequent ones far more often, as in a language."""
    # Not `zipf`, which has changed between versions of NumPy.
    ranks = (np.random.default_rng(seed).random(words) ** -1.5).astype(np.int64) % 26**4
    letters = ranks[:, np.newaxis] // [1, 26, 26**2, 26**3] % 26 + ord("a")
    spaced = np.column_stack([letters, np.full(words, ord(" "))])
    return spaced.astype(np.uint8).tobytes().decode("ascii")


def counted(text: str) -> Counter[str]:
    return Counter(text.split())


def added(counts: list[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total
