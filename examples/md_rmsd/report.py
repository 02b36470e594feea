"""What the terminal shows: progress while the runs go on, and the table at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from measure import Cost

T = TypeVar("T")


class RunProgress:
    """The progress of one run: starting workers, then one step per finished task."""

    def __init__(self, name: str, tasks: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
        )
        self._task = self._progress.add_task(
            name, total=tasks, start=False, state="starting workers"
        )

    def __enter__(self) -> RunProgress:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.update(self._task, state="")
        self._progress.stop()

    def track(self, finished: Iterable[T]) -> Iterator[T]:
        """Yield from `finished`, a step for each."""
        self._progress.start_task(self._task)
        self._progress.update(self._task, state="computing")
        for future in finished:
            self._progress.advance(self._task)
            yield future
        self._progress.update(self._task, state="stopping workers")


def cost_table(costs: dict[str, Cost]) -> Table:
    """Return a table of what each run cost, and what proxystore changed.

    Args:
        costs: By name of the run, a plain run always followed by the same with proxystore.
    """
    table = Table(
        box=box.ROUNDED,
        caption="This process holds the client and Dask's scheduler; the submit side is that and "
        "Parsl's interchange. Peak memory is above the level when the clock started.",
        caption_justify="left",
    )
    table.add_column(no_wrap=True)
    for heading in (
        "wall time",
        "bytes through\nthis process",
        "peak memory\nsubmit side",
        "peak memory\nworkers",
    ):
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    runs = iter(costs.items())
    for (plain_name, plain), (name, ours) in zip(runs, runs, strict=True):
        table.add_row(plain_name, *_cells(plain))
        table.add_row(name, *_cells(ours))
        table.add_row(
            "  change",
            _times(plain.wall, ours.wall, "faster", "slower"),
            _times(plain.traffic, ours.traffic, "less", "more"),
            _megabytes(ours.submit_memory - plain.submit_memory, "+"),
            _megabytes(ours.worker_memory - plain.worker_memory, "+"),
            style="bold",
            end_section=True,
        )
    return table


def _cells(cost: Cost) -> tuple[str, str, str, str]:
    return (
        f"{cost.wall:.2f} s",
        _megabytes(cost.traffic),
        _megabytes(cost.submit_memory),
        _megabytes(cost.worker_memory),
    )


def _megabytes(size: int, sign: str = "") -> str:
    """One unit everywhere, so that a column can be compared at a glance."""
    return f"{size / 1e6:{sign},.1f} MB"


def _times(before: float, after: float, smaller: str, larger: str) -> str:
    """Say by what factor `after` is smaller or larger than `before`; both are above 0."""
    if 0.95 < before / after < 1.05:
        return "about equal"
    ratio, word = (before / after, smaller) if after <= before else (after / before, larger)
    return f"{ratio:,.0f}x {word}" if ratio >= 10 else f"{ratio:.1f}x {word}"
