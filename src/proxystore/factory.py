"""Objects that produce the target of a proxy.

Any callable without arguments will do; a class is worth it when the factory carries data that
others look at, or must be pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

__all__ = ["Factory", "LambdaFactory", "SimpleFactory"]

T = TypeVar("T")
P = ParamSpec("P")


class Factory(Generic[T]):
    """Base of factories: calling one resolves it. Subclasses define `resolve()`."""

    def __init__(self) -> None:
        raise NotImplementedError(
            f"{type(self).__name__} is abstract: define __init__() and resolve() in a subclass"
        )

    def __call__(self) -> T:
        """Return the object: what `resolve()` returns."""
        return self.resolve()

    def resolve(self) -> T:
        """Return the object."""
        raise NotImplementedError(f"{type(self).__name__} does not define resolve()")


class SimpleFactory(Factory[T]):
    """Returns an object that is already there.

    Args:
        obj: The object; a pickle of the factory holds it.
    """

    def __init__(self, obj: T) -> None:
        self._obj = obj

    def resolve(self) -> T:
        """Return the object itself, not a copy."""
        return self._obj


class LambdaFactory(Factory[T]):
    """Returns what a function returns.

    Args:
        target: Called anew on each resolve.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    def __init__(self, target: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        self._target = target
        self._args: tuple[Any, ...] = args
        self._kwargs: dict[str, Any] = kwargs

    def resolve(self) -> T:
        """Call the function."""
        return self._target(*self._args, **self._kwargs)
