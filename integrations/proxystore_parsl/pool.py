"""A pool like those of `concurrent.futures`, on Parsl, whose large data goes through a store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from parsl import DataFlowKernel
from parsl.concurrent import ParslPoolExecutor
from parsl.config import Config

from proxystore_parsl.apps import StoreApps, default_apps
from proxystore_parsl.lifetimes import StoreAppFuture


class StorePool(ParslPoolExecutor):
    """As `parsl.concurrent.ParslPoolExecutor`; large arguments and results go through a store.

    `submit` and `map` give the futures and results that apps of `StoreApps` give. Results
    that were not fetched can be after `shutdown`, but not after `StoreApps.close`.

    Args:
        apps: Its store and settings are used. None: those of the module's decorators.
        config: As for Parsl: started here, and ended by `shutdown`.
        dfk: As for Parsl, in place of `config`: one that runs already.
        executors: As for Parsl.

    Raises:
        ValueError: Not exactly one of `config` and `dfk` is given.
    """

    def __init__(
        self,
        apps: StoreApps | None = None,
        *,
        config: Config | None = None,
        dfk: DataFlowKernel | None = None,
        executors: Literal["all"] | list[str] = "all",
    ) -> None:
        super().__init__(config=config, dfk=dfk, executors=executors)
        self._apps = apps or default_apps()
        self._wrapped: dict[Callable[..., Any], Callable[..., StoreAppFuture]] = {}

    def get_app(self, fn: Callable[..., Any]) -> Any:
        """Return the app of a function; made once."""
        app = self._wrapped.get(fn)
        if app is None:
            self._wrapped[fn] = app = self._apps.wrap(super().get_app(fn))
        return app
