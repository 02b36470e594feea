"""Passing arguments and results by reference, for whichever framework runs the tasks.

The three parts that adapters share: what is worth a reference (`policy`), putting
references in place of objects (`packing`), and who still needs them (`leases`). An
adapter adds what its framework alone knows: where values enter, what a node of its
graph looks like, and when a task can never run again.
"""

from __future__ import annotations

from proxystore.utils._process import identity, is_dead
from proxystore.workflow.embedded import embedded_store, open_store
from proxystore.workflow.leases import Hold, Ledger, LedgerStats
from proxystore.workflow.packing import Packed, Packer, UnpicklableArgumentError, unpack
from proxystore.workflow.policy import ThresholdError, measure, parse_size, size_at_least
from proxystore.workflow.refs import ProxyRef, Ref, RefId, store_object, sweep

__all__ = [
    "Hold",
    "Ledger",
    "LedgerStats",
    "Packed",
    "Packer",
    "ProxyRef",
    "Ref",
    "RefId",
    "ThresholdError",
    "UnpicklableArgumentError",
    "embedded_store",
    "identity",
    "is_dead",
    "measure",
    "open_store",
    "parse_size",
    "size_at_least",
    "store_object",
    "sweep",
    "unpack",
]
