"""Defaults in Dask's own configuration, under `proxystore`; `proxystore.yaml` lists them.

`proxystore-schema.yaml` says what each may be, for programs that check or show configurations.
No file is written into anybody's home.

Set them where Dask's settings are set: a YAML file in ``~/.config/dask``, `dask.config.set`, or the
environment (``DASK_PROXYSTORE__THRESHOLD="10 MiB"``).
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import dask.config
import yaml  # type: ignore[import-untyped]  # comes with dask, without stubs


def load_defaults() -> None:
    """Make the shipped defaults known to Dask; values that are set already win."""
    text = files(__package__).joinpath("proxystore.yaml").read_text(encoding="utf-8")
    dask.config.update_defaults(yaml.safe_load(text))


def setting(name: str, given: Any) -> Any:
    """`given`, or what Dask's configuration says under ``proxystore.<name>`` if it is None."""
    return dask.config.get(f"proxystore.{name}") if given is None else given


def origin(name: str, given: Any) -> str:
    """What an error calls the value of `setting`: an argument, or a key of the configuration."""
    return f"proxystore.{name} in Dask's configuration" if given is None else f"ps_{name}"


load_defaults()
