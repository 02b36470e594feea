"""Objects by their dotted path, as configurations name them."""

from __future__ import annotations

import importlib
from functools import reduce
from types import ModuleType
from typing import Any

__all__ = ["get_object_path", "import_from_path"]


def get_object_path(obj: Any) -> str:
    """Return "module.qualname" of a class or function; see `import_from_path` for the way back.

    Raises:
        TypeError: `obj` has no name of its own, such as an instance or a partial.
    """
    try:
        return f"{obj.__module__}.{obj.__qualname__}"
    except AttributeError:
        raise TypeError(
            f"only classes and functions have an import path, got {obj!r} "
            f"of type {type(obj).__name__}"
        ) from None


def import_from_path(path: str) -> Any:
    """Return the object that a dotted path leads to.

    The path is split at the last dot into a module and an attribute; if there is no such
    module, one dot earlier, so that classes nested in classes are found too.

    Args:
        path: Such as "typing.Any" or "package.module.Outer.Inner".

    Raises:
        ImportError: The path has no dot, or leads to no module or attribute. An error raised
            while a module that exists is being imported is passed on as it is.
    """
    names = path.split(".")
    if len(names) < 2 or not all(names):
        raise ImportError(f"an import path has the form 'module.attribute', got {path!r}")
    for split in range(len(names) - 1, 0, -1):
        module = _find_module(".".join(names[:split]))
        if module is not None:
            break
    else:
        raise ImportError(f"cannot import {path!r}: no module named {names[0]!r}", name=names[0])
    try:
        return reduce(getattr, names[split:], module)
    except AttributeError as e:
        raise ImportError(f"cannot import {path!r}: {e}", name=module.__name__) from e


def _find_module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        # A module that exists but misses one of its own imports is not the same as no module.
        if e.name is not None and (name == e.name or name.startswith(f"{e.name}.")):
            return None
        raise
