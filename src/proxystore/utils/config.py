"""Pydantic models as TOML files.

Loading is strict: TOML has types of its own, so a quoted number where an integer belongs is a
mistake in the file, not a spelling of the integer.
"""

from __future__ import annotations

import sys
from typing import Any, BinaryIO, TypeVar

import tomli_w
from pydantic import BaseModel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["dump", "dumps", "load", "loads"]

ModelT = TypeVar("ModelT", bound=BaseModel)


def dump(model: BaseModel, fp: BinaryIO, *, exclude_none: bool = True) -> None:
    """Write a model as TOML to a file opened for binary writing; as for `dumps`."""
    fp.write(dumps(model, exclude_none=exclude_none).encode())


def dumps(model: BaseModel, *, exclude_none: bool = True) -> str:
    """Return a model as TOML.

    Fields keep their order, except that nested models become tables and tables come last.
    Lists are written one item per line.

    Args:
        model: What to write; its values must be ones that TOML has.
        exclude_none: Leave out fields that are None, which TOML cannot express, and so
            whatever is None in a dictionary.

    Raises:
        TypeError: A value has no form in TOML, such as a function, or None where it is not
            left out.
    """
    fields = model.model_dump(exclude_none=exclude_none)
    return tomli_w.dumps(_without_none(fields) if exclude_none else fields)


def _without_none(value: Any) -> Any:
    # In lists too, where pydantic leaves the dictionaries as they are.
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, (list, tuple)) else value


def load(model_type: type[ModelT], fp: BinaryIO) -> ModelT:
    """Return the model in a TOML file opened for binary reading; errors as for `loads`."""
    return loads(model_type, fp.read().decode())


def loads(model_type: type[ModelT], text: str) -> ModelT:
    """Return the model written as TOML in `text`.

    Raises:
        tomllib.TOMLDecodeError: `text` is not TOML (a ValueError, as is the next).
        pydantic.ValidationError: It is, but does not describe a `model_type`.
    """
    return model_type.model_validate(tomllib.loads(text), strict=True)
