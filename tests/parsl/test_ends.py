"""The end of an executor, and of a DataFlowKernel, with tasks that are not final."""

from __future__ import annotations

import time

import numpy as np
import parsl
import pytest
from parsl_tasks import fail, identity, ones, total, touch_and_wait, wait_for

from proxystore_parsl import ClosedError, ObjectLostError, StoreApps, with_store

pytestmark = pytest.mark.parsl


def test_nothing_is_left(start, new_executor, objects, array, wait_until, tmp_path):
    """In one kernel, since starting one takes seconds."""
    go, started = str(tmp_path / "go"), tmp_path / "started"
    closed, other, apps = (StoreApps(objects.store, threshold="50 kB") for _ in range(3))
    kernel = start(
        with_store(new_executor("closed", workers=1), closed),
        with_store(new_executor("other", workers=1), other),
    )
    there = {"data_flow_kernel": kernel, "executors": ["closed"]}
    elsewhere = {"data_flow_kernel": kernel, "executors": ["other"]}

    # The apps of an executor are closed: one task has its argument already, one has not.
    made = parsl.python_app(ones, **there)(20_000)
    made.exception()
    running = parsl.python_app(touch_and_wait, **there)(str(started), go, array)
    queued = parsl.python_app(total, **there)(array + 1)
    wait_until(started.exists)
    objects.wait_until(3)
    assert closed.stats().pending == 2
    closed.close()
    objects.wait_until(0)
    refused = parsl.python_app(total, **there)(array)
    assert isinstance(refused.exception(), ClosedError)
    (tmp_path / "go").touch()
    assert isinstance(running.exception(), ClosedError)
    assert isinstance(queued.exception(), ClosedError)
    assert isinstance(queued.exception().__cause__, ObjectLostError)
    (tmp_path / "go").unlink()
    objects.wait_until(0)

    # A task of an executor has failed.
    failed = parsl.python_app(fail, **elsewhere)(array)
    assert isinstance(failed.exception(), ValueError)
    assert len(objects) == 1  # Parsl might try it again

    # The kernel ends.
    done = apps.python_app(identity, **elsewhere)(array + 1)
    done.exception()
    waiting = [apps.python_app(wait_for, **elsewhere)(go, array + 2) for _ in range(3)]
    dependent = apps.python_app(total, **elsewhere)(waiting[0])
    objects.wait_until(3)
    started = time.monotonic()
    kernel.cleanup()
    for future in [*waiting, dependent]:
        with pytest.raises(ClosedError, match="its DataFlowKernel was cleaned up"):
            future.result(timeout=10)
    assert time.monotonic() - started < 30
    objects.wait_until(1)
    assert np.array_equal(done.result(), array + 1)  # as with Parsl, what is done is there
    del done
    objects.wait_until(0)
