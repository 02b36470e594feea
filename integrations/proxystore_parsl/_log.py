"""The log of this package: a part of Parsl's, so that it is in the same file."""

from __future__ import annotations

import logging

logger = logging.getLogger("parsl.proxystore")
