"""Connectors' classes by the names that configurations give them."""

from __future__ import annotations

# Each is imported when it is asked for, since a back end's client may be heavy or not
# installed. Those that are not part of this package any more stay known by name.
BUILT_IN = ("endpoint", "file", "globus", "local", "multi", "redis")


def class_path(kind: str) -> str:
    """Return the dotted path of a connector's class.

    Args:
        kind: The path itself, or a built-in's name in any case, with or without the
            word "connector" (``"file"``, ``"FileConnector"``).
    """
    name = kind.lower().removesuffix("connector")
    if name not in BUILT_IN:
        return kind
    return f"proxystore.connectors.{name}.{name.capitalize()}Connector"
