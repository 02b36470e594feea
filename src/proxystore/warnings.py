"""Warning categories of this package."""

from __future__ import annotations

__all__ = ["ExperimentalWarning"]


class ExperimentalWarning(Warning):
    """The feature works but its interface may change without a deprecation period."""
