"""A small network in NumPy, and data that each site has for itself; all that workers import."""

from __future__ import annotations

import numpy as np

Model = list[np.ndarray]

CLASSES = 10
INPUTS = 64
HIDDEN = 512
SPREAD = 1.8  # of the examples of a class, where the classes' centres are 1 apart or so


def new_model() -> Model:
    """Return weights of two layers, 0.3 MB."""
    random = np.random.default_rng(0)
    return [
        random.normal(size=(INPUTS, HIDDEN)) / np.sqrt(INPUTS),
        random.normal(size=(HIDDEN, CLASSES)) / np.sqrt(HIDDEN),
    ]


def examples(site: int | None, count: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs, shape (count, INPUTS), and their classes.

    Args:
        site: Knows three of the classes, and has the same examples each time. None: a mixture of
            all classes, to test with.
        count: How many.
    """
    centres = np.random.default_rng(1).normal(size=(CLASSES, INPUTS))
    random = np.random.default_rng([2, CLASSES if site is None else site])
    known = np.arange(CLASSES) if site is None else (3 * site + np.arange(3)) % CLASSES
    classes = random.choice(known, size=count)
    return centres[classes] + SPREAD * random.normal(size=(count, INPUTS)), classes


def train(model: Model, site: int, steps: int = 10, rate: float = 0.5) -> Model:
    """Return the model after some steps down the gradient on a site's own examples."""
    first, last = model
    inputs, classes = examples(site)
    wanted = np.eye(CLASSES)[classes]
    for _ in range(steps):
        hidden = np.maximum(inputs @ first, 0)
        error = (softmax(hidden @ last) - wanted) / len(inputs)
        back = (error @ last.T) * (hidden > 0)
        last = last - rate * hidden.T @ error
        first = first - rate * inputs.T @ back
    return [first, last]


def average(*models: Model) -> Model:
    return [np.mean(layers, axis=0) for layers in zip(*models, strict=True)]


def accuracy(model: Model) -> float:
    """Return the share of a mixture of all classes that the model gets right."""
    inputs, classes = examples(None, count=2000)
    guesses = (np.maximum(inputs @ model[0], 0) @ model[1]).argmax(axis=1)
    return float((guesses == classes).mean())


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
