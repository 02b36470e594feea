"""Where this process runs and where this package keeps its files."""

from __future__ import annotations

import os
import socket

__all__ = ["home_dir", "hostname"]


def home_dir() -> str:
    """Return the absolute path of this package's directory; it need not exist.

    `$PROXYSTORE_HOME` if set, else `$XDG_DATA_HOME/proxystore`, else
    `~/.local/share/proxystore`. A variable set to nothing counts as not set.
    """
    path = os.environ.get("PROXYSTORE_HOME")
    if not path:
        data_home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
        path = os.path.join(data_home, "proxystore")
    return os.path.abspath(path)


def hostname() -> str:
    """Return the name of this host as the operating system knows it."""
    return socket.gethostname()
