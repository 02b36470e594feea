"""A page in Dask's dashboard: what is in the stores, for which tasks, and what has happened there.

The scheduler's own web server serves it as ``/proxystore``, beside ``/status``, and its figures as
``/proxystore.json``. It is not made with bokeh: so it is there without bokeh too, fits on a phone,
and costs a scheduler that nobody looks at nothing.

The public ways to extend the dashboard are modules named in ``distributed.scheduler.http.routes``,
which are read when a scheduler starts, and `add_application` of its `http_application`. Plugins
come later, so it is the second one here.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask.utils import key_split
from distributed.http.utils import RequestHandler
from tornado.web import Application, RedirectHandler

import proxystore

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

    from proxystore_dask.scheduler_plugin import StoreLifetimes

logger = logging.getLogger(__name__)

PAGE = "proxystore"

# More rows than anybody reads; the rest is one row.
_MOST_PREFIXES = 100

# What a prefix has in each column that nothing has happened in.
_COLUMNS = "objects nbytes tasks results misses hits load_bytes load_seconds load_failures"
_NOTHING: dict[str, Any] = dict.fromkeys(_COLUMNS.split(), 0)

# Dask's own pages, where it has only those that need no bokeh.
_WITHOUT_BOKEH = ("info/main/workers.html",)


class _Handler(RequestHandler):
    def get_template_path(self) -> str:
        return str(Path(__file__).parent)


class _Page(_Handler):
    def get(self) -> None:
        pages = _dask_pages(self.server) or _WITHOUT_BOKEH
        self.render("dashboard.html", pages=[page for page in pages if page != PAGE])


class _Data(_Handler):
    def get(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.write(report(self.extra["plugin"]))


def report(plugin: StoreLifetimes) -> dict[str, Any]:
    """The figures as the page gets them; sizes in bytes, times in seconds (since the epoch)."""
    figures, loads = plugin.figures, plugin.loads()
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, prefix in figures.prefixes.items():
        rows[name].update(objects=len(prefix.uses), nbytes=prefix.nbytes, tasks=prefix.tasks)
    for key, refs in plugin.results():
        nbytes = sum(ref.nbytes for ref in refs)
        rows[key_split(key)].update(results=len(refs), objects=len(refs), nbytes=nbytes)
    for name, got in loads.items():
        rows[name].update(vars(got))
    prefixes = [{"name": name, **_NOTHING, **row} for name, row in rows.items()]
    prefixes.sort(key=lambda row: (-row["nbytes"], -row["load_bytes"], row["name"]))
    return {
        "version": proxystore.__version__,
        "time": time.time(),
        "totals": plugin.totals(),
        "prefixes": prefixes[:_MOST_PREFIXES],
        "more_prefixes": len(prefixes[_MOST_PREFIXES:]),
        "stores": plugin.places(),
        "history": list(figures.history),
    }


def _dask_pages(scheduler: Scheduler) -> list[str] | None:
    """The entries of the navigation in Dask's dashboard; None if this scheduler has none."""
    applications = scheduler.http_application.applications
    if not any(hasattr(each, "app_paths") for each in applications):  # a BokehTornado
        return None
    pages: list[str] | None = None
    # Made once for each scheduler, and looked at whenever Dask makes a page.
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        module = sys.modules["distributed.dashboard.scheduler"]
        pages = module.template_variables(scheduler)["pages"]
    return pages if isinstance(pages, list) else None


def serve(scheduler: Scheduler, plugin: StoreLifetimes) -> Callable[[], None]:
    """Add the page to a scheduler's web server, and to the navigation of its dashboard.

    Returns:
        Undoes it.
    """
    # Whatever ``--dashboard-prefix`` is, for plugins are not told.
    path = rf"/(?:.+/)?{PAGE}"
    given = {"dask_server": scheduler, "extra": {"plugin": plugin}}
    application = Application(
        [
            (path, _Page, given),
            # The page's links are relative.
            (f"{path}/", RedirectHandler, {"url": f"../{PAGE}", "permanent": False}),
            (rf"{path}\.json", _Data, given),
        ]
    )
    applications = scheduler.http_application
    applications.add_application(application)
    pages = _dask_pages(scheduler)
    if pages is not None and PAGE not in pages:
        pages.append(PAGE)

    def stop() -> None:
        if application in applications.applications:
            applications.applications.remove(application)
        if pages is not None and PAGE in pages:
            pages.remove(PAGE)

    return stop
