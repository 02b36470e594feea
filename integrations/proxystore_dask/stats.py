"""What a client has passed by reference, for people."""

from __future__ import annotations

import html
from dataclasses import dataclass

from dask.utils import format_bytes

from proxystore_dask.dashboard import PAGE


@dataclass(frozen=True)
class StoreStats:
    """What one client has passed by reference so far.

    Results that its tasks leave in the store (`ps_results`) are not in it: the scheduler knows of
    those, and the page ``/proxystore`` of its dashboard shows them. `str` of it, and what notebooks
    show, have sizes for people.

    Attributes:
        store: Name of the store; None if arguments travel as in plain Dask.
        connector: Where the store keeps objects.
        lifetimes: Who evicts: ``"graph"`` (the scheduler's plugin) or ``"client"`` (at its close).
            None: the client is not connected, and stores nothing.
        threshold: Size from which arguments go by reference, in bytes.
        puts: Objects stored.
        put_bytes: Their size.
        reused: How often bytes were wanted that were in the store already.
        live: Objects that this client's futures keep alive.
        live_bytes: Their size.
    """

    store: str | None
    connector: str | None
    lifetimes: str | None
    threshold: int
    puts: int = 0
    put_bytes: int = 0
    reused: int = 0
    live: int = 0
    live_bytes: int = 0

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self._rows())

    def _repr_html_(self) -> str:
        return stats_html(self)

    def _rows(self) -> list[tuple[str, str]]:
        if self.lifetimes is None:
            return [("Store", "none in use: large data travels as in plain Dask")]
        evicted = "when the client closes"
        if self.lifetimes == "graph":
            evicted = "when no task can need it any more"
        return [
            ("Store", f"{self.store}, {self.connector}"),
            ("By reference", f"from {format_bytes(self.threshold)}"),
            ("Stored", f"{_objects(self.puts)}, {format_bytes(self.put_bytes)}"),
            ("Stored already when wanted", _objects(self.reused)),
            ("Alive", f"{_objects(self.live)}, {format_bytes(self.live_bytes)}"),
            ("Evicted", evicted),
        ]


def _objects(count: int) -> str:
    return f"{count:,} object{'' if count == 1 else 's'}"


def stats_html(stats: StoreStats, dashboard_link: str | None = None) -> str:
    """A table, in the style of Dask's own, with the colours of whatever it is in.

    Args:
        stats: What to show.
        dashboard_link: The client's; None, or not that of Dask's usual first page: do not lead to
            ours.
    """
    rows = [(name, html.escape(value)) for name, value in stats._rows()]
    if stats.lifetimes == "graph" and dashboard_link and dashboard_link.endswith("/status"):
        page = html.escape(dashboard_link.removesuffix("status") + PAGE)
        rows.append(("Dashboard", f'<a href="{page}" target="_blank">{page}</a>'))
    cells = "".join(
        f'<tr><td style="text-align: left;"><strong>{name}:</strong></td>'
        f'<td style="text-align: left; overflow-wrap: anywhere;">{value}</td></tr>'
        for name, value in rows
    )
    # Notebooks fix the layout of tables: both columns are then of one width, whatever is in them.
    style = "width: 100%; table-layout: auto; text-align: left;"
    return (
        '<div style="margin-left: 48px;"><h3 style="margin-bottom: 0px;">Objects by reference</h3>'
        f'<table style="{style}">{cells}</table></div>'
    )
