"""Checks for those who write connectors."""

from __future__ import annotations

from proxystore.testing.connectors import check_connector

__all__ = ["check_connector"]
