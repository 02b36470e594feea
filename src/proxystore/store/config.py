"""How a store is written down, sent to another process, and made again there."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from proxystore.connectors.protocols import Connector
from proxystore.store.exceptions import (
    ConnectorOptionsError,
    StoreConfigError,
    StoreConfigReadError,
    UnknownConnectorError,
)
from proxystore.store.types import DeserializerT, SerializerT
from proxystore.utils.imports import get_object_path, import_from_path

# By lower-case class name; the word "connector" may be left out. Each is imported
# when it is asked for, since a back end's client may be heavy or not installed.
_BUILT_IN = {
    f"{name}connector": f"proxystore.connectors.{name}.{name.capitalize()}Connector"
    for name in ("endpoint", "file", "globus", "local", "multi", "redis")
}


def _built_in_here() -> tuple[str, ...]:
    """Return the short names of the built-ins that this version has."""
    modules = {path.rpartition(".")[0] for path in _BUILT_IN.values()}
    return tuple(sorted(m.rpartition(".")[2] for m in modules if find_spec(m) is not None))


class ConnectorConfig(BaseModel):
    """A connector's class and the options of its constructor.

    Nothing is imported or checked before the connector is asked for.

    Attributes:
        kind: Path of the class (``package.module.Class``), or a built-in's name in
            any case, with or without the word "connector" (``"file"``).
        options: Keyword arguments of its constructor.
    """

    model_config = ConfigDict(extra="forbid")

    kind: str
    options: dict[str, Any] = Field(default_factory=dict)

    def get_connector_type(self) -> type[Connector[Any]]:
        """Return the connector's class.

        Raises:
            UnknownConnectorError: `kind` names no class that can be imported here; a
                `ValueError`.
        """
        short = self.kind.lower()
        path = _BUILT_IN.get(short) or _BUILT_IN.get(f"{short}connector") or self.kind
        try:
            found = import_from_path(path)
        except ImportError as error:
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


class StoreConfig(BaseModel):
    """Everything that is needed to make a store in another process.

    Picklable and comparable by value. Attributes are those of `Store`.

    Attributes:
        verify: As for `Store`; None (left out of TOML): its default.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    connector: ConnectorConfig
    serializer: SerializerT | None = None
    deserializer: DeserializerT | None = None
    cache_size: int = 16
    metrics: bool = False
    populate_target: bool = True
    auto_register: bool = False
    verify: bool | None = None

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
