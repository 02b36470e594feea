"""Tries that fail, or whose worker is killed: the next one finds everything it needs."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from parsl_tasks import (
    die_between_results_once,
    die_once,
    die_while_writing_once,
    fail,
    fail_once,
    ones,
    total,
    wait_for,
)

from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore_parsl import ObjectLostError

pytestmark = pytest.mark.parsl


@pytest.fixture(autouse=True)
def _one_retry(kernel, monkeypatch):
    monkeypatch.setattr(kernel.config, "retries", 1)


def test_find_their_input_again(app, array, objects, tmp_path):
    future = app(fail_once)(array, str(tmp_path / "failed"))
    assert future.result() == array.sum()
    assert future.task_record["fail_count"] == 1
    objects.wait_until(0)


def test_find_a_result_again(app, objects, tmp_path):
    future = app(fail_once)(app(ones)(20_000), str(tmp_path / "failed"))
    assert future.result() == 20_000
    objects.wait_until(0)


def test_after_the_worker_was_killed(app, array, objects, tmp_path):
    future = app(die_once)(array, str(tmp_path / "died"))
    assert future.result() == array.sum()
    assert future.task_record["fail_count"] == 1
    objects.wait_until(0)


def test_what_a_killed_worker_had_stored_is_evicted(app, objects, tmp_path):
    future = app(die_between_results_once)(20_000, str(tmp_path / "died"))
    first, second = future.result()
    assert (first.sum(), second.sum()) == (20_000, 0)
    assert future.task_record["fail_count"] == 1
    objects.wait_until(2)


def test_what_a_killed_worker_was_storing_is_removed(app, objects, tmp_path):
    future = app(die_while_writing_once)(20_000, str(tmp_path / "died"))
    assert future.result().sum() == 20_000
    assert future.task_record["fail_count"] == 1
    objects.wait_until(1)


def test_while_others_take_the_same_object(app, array, tmp_path):
    futures = [app(die_once)(array, str(tmp_path / str(i % 2))) for i in range(4)]
    assert [future.exception() for future in futures] == [None] * 4


def test_that_fail_too(app, array, objects):
    future = app(fail)(array)
    assert isinstance(future.exception(), ValueError)
    assert future.task_record["fail_count"] == 2
    objects.wait_until(0)


def test_worker_killed_in_the_middle(app, array, objects, tmp_path):
    def first_pid(started, marker, x):
        from parsl_tasks import first_time, wait_for

        if first_time(marker):
            import os

            with open(started + ".part", "w") as file:
                file.write(str(os.getpid()))
            os.rename(started + ".part", started)
            wait_for("/nowhere/at/all")
        return x

    started = tmp_path / "started"
    future = app(first_pid)(str(started), str(tmp_path / "marker"), array)
    wait_for(started)
    os.kill(int(started.read_text()), signal.SIGKILL)
    assert np.array_equal(future.result(), array)


def test_handler_sees_what_went_wrong(apps, app, kernel, array, objects, monkeypatch):
    seen = []

    def no_retry(error, record):
        seen.append(error)
        return 2

    monkeypatch.setattr(kernel.config, "retry_handler", no_retry)
    kept = apps.put(array)
    objects.store.evict(kept.__proxy_factory__.key)
    error = app(total)(kept).exception()
    assert isinstance(error, ObjectLostError)
    assert isinstance(error, ProxyResolveMissingKeyError)
    assert [type(each) for each in seen] == [ObjectLostError]
