"""Stores and keys inside pickled proxies: short, and decoded once per process.

Every proxy carries its store's configuration. As a pydantic model that is 600 bytes
and 11 us to rebuild, for each proxy; as text it is about 60 bytes and a path, and the
second proxy with the same text costs a dictionary look-up.
"""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Sequence
from typing import Any

from proxystore.store.config import ConnectorConfig, StoreConfig
from proxystore.store.types import ConnectorKeyT
from proxystore.utils.imports import import_from_path

# The order of the fields in the text; what ends the list and is at its default is
# left out. Appending fields keeps old texts readable.
_FIELDS = tuple("cache_size metrics populate_target auto_register verify cache_bytes".split())
_DEFAULTS = [StoreConfig.model_fields[name].default for name in _FIELDS]

# Our own connectors, "proxystore.connectors.file.FileConnector", are written ".file";
# their keys are "proxystore.connectors.file.FileKey". Here is what their options
# usually say: so much is left out, and put back.
_USUAL: dict[str, dict[str, Any]] = {
    ".file": {"clear": True, "buffering": -1},
    ".local": {"include_data_in_config": False},
    ".redis": {"clear": False},
}

# As many configurations as one process may ever see at once; past that, decoding
# starts anew, which is slower and nothing else.
_MOST = 1024
_decoded: dict[str, StoreConfig] = {}
# Texts of the configurations that many factories share, by identity.
_texts: dict[int, tuple[weakref.ref[StoreConfig], str | None]] = {}


def share(config: StoreConfig) -> StoreConfig:
    """Return `config`, which must not change from now on: it will be encoded only once."""
    place, text = id(config), encode(config)
    # The callback frees the place before another object can have the same identity.
    _texts[place] = (weakref.ref(config, lambda _: _texts.pop(place, None)), text)
    return config


def encode(config: StoreConfig) -> str | None:
    """Return `config` as text, or None if it holds what JSON cannot give back as it was."""
    shared = _texts.get(id(config))
    if shared is not None and shared[0]() is config:
        return shared[1]
    if config.serializer is not None or config.deserializer is not None:
        return None
    tail = [getattr(config, name) for name in _FIELDS]
    while tail and _same(tail[-1], _DEFAULTS[len(tail) - 1]):
        tail.pop()
    kind, options = config.connector.kind, config.connector.options
    short = _short(kind)
    usual = _USUAL.get(short, {})
    if usual.keys() <= options.keys():  # else what was never there would be put back
        kind = short
        options = {k: v for k, v in options.items() if k not in usual or not _same(v, usual[k])}
    fields = [config.name, kind, options, *tail]
    try:
        text = json.dumps(
            _marked(fields), separators=(",", ":"), allow_nan=False, ensure_ascii=False
        )
    except (TypeError, ValueError, RecursionError):
        return None
    # Non-string keys and the like would come back as something else.
    return text if _same(_read(text), fields) else None


def encode_apart(config: StoreConfig) -> tuple[str | None, tuple[Any, ...] | None]:
    """Return `config` as text without its serializers, and these; None twice if that fails."""
    functions = {"serializer": config.serializer, "deserializer": config.deserializer}
    text = encode(config.model_copy(update=dict.fromkeys(functions)))
    return text, None if text is None else tuple(functions.values())


def decode(text: str, functions: tuple[Any, ...] | None = None) -> StoreConfig:
    """Return the configuration in `text`: the same instance each time; do not change it.

    Args:
        text: From `encode`.
        functions: Serializer and deserializer, from `encode_apart`; then the instance is
            a new one. None: there are none.
    """
    if functions is not None:
        serializer, deserializer = functions
        return decode(text).model_copy(
            update={"serializer": serializer, "deserializer": deserializer}
        )
    found = _decoded.get(text)
    if found is None:
        name, kind, options, *tail = _read(text)
        found = StoreConfig(
            name=name,
            connector=ConnectorConfig(
                kind=_long(kind, "Connector"), options={**_USUAL.get(kind, {}), **options}
            ),
            **dict(zip(_FIELDS, tail, strict=False)),
        )
        if len(_decoded) >= _MOST:
            _decoded.clear()
        found = _decoded.setdefault(text, share(found))
    return found


def fields_of(key: ConnectorKeyT, config: StoreConfig) -> ConnectorKeyT | None:
    """Return the fields of a key whose class `key_from` knows; None if it does not."""
    cls = type(key)
    known = _key_type(config.connector.kind)
    return tuple(key) if cls is known and known is not None else None


def key_from(fields: Sequence[Any], config: StoreConfig) -> ConnectorKeyT:
    """Return the key that `fields_of` has taken apart."""
    cls = _key_type(config.connector.kind)
    if cls is None:
        raise ImportError(f"cannot find the class of the keys of {config.connector.kind}")
    key: ConnectorKeyT = cls(*fields)
    return key


@functools.lru_cache(maxsize=128)
def _key_type(kind: str) -> Any:
    short = _short(kind)
    if short == kind:
        return None
    try:
        return import_from_path(_long(short, "Key"))
    except ImportError:
        return None


_PREFIX = "proxystore.connectors."


def _short(kind: str) -> str:
    name = kind.removeprefix(_PREFIX).partition(".")[0]
    return f".{name}" if kind == _long(f".{name}", "Connector") else kind


def _long(kind: str, suffix: str) -> str:
    if not kind.startswith("."):
        return kind
    return f"{_PREFIX}{kind[1:]}.{kind[1:].capitalize()}{suffix}"


# A tuple, as in the options of a MultiConnector, is written {"()": [...]}.
_TUPLE = "()"


def _marked(value: Any) -> Any:
    if type(value) is tuple:
        return {_TUPLE: [_marked(item) for item in value]}
    if type(value) is list:
        return [_marked(item) for item in value]
    if type(value) is dict:
        return {key: _marked(item) for key, item in value.items()}
    return value


def _read(text: str) -> Any:
    return json.loads(text, object_hook=_unmarked)


def _unmarked(found: dict[str, Any]) -> Any:
    return tuple(found[_TUPLE]) if found.keys() == {_TUPLE} else found


def _same(a: Any, b: Any) -> bool:
    """Equality that tells True from 1 and a list from a tuple."""
    if type(a) is not type(b):
        return False
    if type(a) is dict:
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if type(a) is list or type(a) is tuple:
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
