"""Pass large objects by reference through Dask and Parsl, without editing your code.

Nothing is imported here but the version: a worker pays only for the modules it uses.
"""

from __future__ import annotations

import importlib.metadata

__version__ = importlib.metadata.version("proxystore")
