"""How a store is written down, sent to another process, and made again there."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from proxystore.connectors._kinds import BUILT_IN, class_path
from proxystore.connectors.protocols import Connector
from proxystore.store.exceptions import (
    ConnectorOptionsError,
    StoreConfigError,
    StoreConfigReadError,
    UnknownConnectorError,
)
from proxystore.store.types import DeserializerT, SerializerT
from proxystore.utils.data import readable_to_bytes
from proxystore.utils.imports import get_object_path, import_from_path


def _built_in_here() -> tuple[str, ...]:
    """Return the short names of the built-ins that this version has."""
    return tuple(name for name in BUILT_IN if find_spec(f"proxystore.connectors.{name}"))


class ConnectorConfig(BaseModel):
    """A connector's class and the options of its constructor.

    Nothing is imported or checked before the connector is asked for.

    Attributes:
        kind: Path of the class (``package.module.Class``), or a built-in's name in
            any case, with or without the word "connector" (``"file"``).
        options: Keyword arguments of its constructor.
    """

    # What cannot be used may hold a password, and errors end up in logs.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    kind: str
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _as_returned(cls, options: dict[str, Any], others: ValidationInfo) -> dict[str, Any]:
        # So that what was written as TOML or JSON and read again is equal.
        if class_path(others.data.get("kind", "")) != class_path("multi"):
            return options
        from proxystore.connectors import multi  # only for who uses it

        return multi.as_returned(options)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        # Configurations end up in logs.
        for name, value in super().__repr_args__():
            yield name, _without_passwords(value)

    def get_connector_type(self) -> type[Connector[Any]]:
        """Return the connector's class.

        Raises:
            UnknownConnectorError: `kind` names no class that can be imported here; a
                `ValueError`.
            ImportError: It is a built-in whose client is not installed; the message says
                how to get it.
        """
        path = class_path(self.kind)
        try:
            found = import_from_path(path)
        except ImportError as error:
            if path in map(class_path, _built_in_here()):
                raise
            raise UnknownConnectorError(self.kind, _built_in_here()) from error
        if not isinstance(found, type):
            raise UnknownConnectorError(self.kind, _built_in_here())
        return found

    def get_connector(self) -> Connector[Any]:
        """Return a new connector.

        Raises:
            UnknownConnectorError: As for `get_connector_type`.
            ConnectorOptionsError: The constructor does not take `options`; a `TypeError`.
        """
        cls = self.get_connector_type()
        try:
            return cls(**self.options)
        except TypeError as error:
            raise ConnectorOptionsError(
                get_object_path(cls), tuple(self.options), str(error)
            ) from error


def _without_passwords(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: "***" if part and str(name).endswith("password") else _without_passwords(part)
            for name, part in value.items()
        }
    if isinstance(value, (list, tuple)):
        parts = [_without_passwords(part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, str) and "://" in value:
        value = re.sub(r"(://[^/@:]*:).*@", r"\1***@", value)
        return re.sub(r"([?&]\w*password=)[^&]*", r"\1***", value)
    return value


def size_from(value: int | str | None, name: str) -> int | None:
    """Return a size in bytes, given as a number or as text such as "1 GB"; None is none.

    Args:
        value: The size.
        name: What it is called in the error.

    Raises:
        TypeError: It is True or False.
        ValueError: It is not a size, or negative.
    """
    if isinstance(value, bool):
        raise TypeError(
            f"{name} must be a number of bytes, a size such as '1 GB', or None, got bool"
        )
    error = ValueError(
        f"{name} must be a number of bytes of 0 or more, a size such as '1 GB', or None for no "
        f"limit, got {value!r}"
    )
    try:
        number = None if value is None else operator.index(_number(value))
    except (TypeError, ValueError) as cause:
        raise error from cause
    if number is not None and number < 0:
        raise error
    return number


def _number(value: Any) -> Any:
    # What is no text is for others to check.
    return readable_to_bytes(value) if isinstance(value, str) else value


class StoreConfig(BaseModel):
    """Everything that is needed to make a store in another process.

    Picklable and comparable by value. Attributes are those of `Store`.

    Attributes:
        verify: As for `Store`; None (left out of TOML): its default.
        cache_bytes: As for `Store`, also as text (`cache_bytes = "1 GB"`), which becomes a
            number; None (left out of TOML): no limit.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)  # as above

    name: str
    connector: ConnectorConfig
    serializer: SerializerT | None = None
    deserializer: DeserializerT | None = None
    cache_size: int = 16
    metrics: bool = False
    populate_target: bool = True
    auto_register: bool = False
    verify: bool | None = None
    cache_bytes: Annotated[NonNegativeInt | None, BeforeValidator(_number)] = None

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restore a pickled configuration, also one that knew fewer fields."""
        fields = {name: field.default for name, field in type(self).model_fields.items()}
        super().__setstate__({**state, "__dict__": {**fields, **state["__dict__"]}})

    @classmethod
    def from_toml(cls, filepath: str | os.PathLike[str]) -> StoreConfig:
        """Read a configuration from a TOML file.

        Validation is strict: ``cache_size = "16"`` is refused, and so are unknown keys.

        Raises:
            StoreConfigReadError: The file cannot be read; an `OSError`.
            StoreConfigError: It is not TOML.
            pydantic.ValidationError: It is, and does not describe a store.
        """
        from proxystore.utils import config  # TOML libraries, only for who uses TOML

        try:
            with open(filepath, "rb") as file:
                return config.load(cls, file)
        except OSError as error:
            raise StoreConfigReadError(
                os.fspath(filepath), f"it cannot be read: {error.strerror}"
            ) from error
        except ValidationError as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"in {os.fspath(filepath)}")
            raise
        except ValueError as error:  # of TOML or of UTF-8
            raise StoreConfigError(os.fspath(filepath), f"it is not TOML: {error}") from error

    def write_toml(self, filepath: str | os.PathLike[str]) -> None:
        """Write the configuration to a TOML file, making its directory if needed.

        Raises:
            TypeError: A serializer or deserializer is set; functions have no TOML.
        """
        from proxystore.utils import config  # as above

        text = config.dumps(self)
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
