"""What a program may count on, scenario by scenario; most have their test elsewhere.

=========================================  ====================================================
an array as the result                     test_results.py, TestWhatComesBack
a task meets an object that is gone        test_failures.py, TestLostObjects
an exception that cannot be unpickled      test_failures.py, TestExceptions
a result that cannot be unpickled          test_results.py, TestWhatCannotComeBack
a retry after the input was read           test_retries.py
the argument is the result, or in it       test_lifetimes.py, TestResults
``x[0] = 42; return x``                    test_results.py, TestWhatComesBack
json, re, StringIO                         test_arguments.py, TestWhatArrives
classes of a notebook or a script          test_programs.py
``cache=True`` with arrays                 test_lifetimes.py, test_memoizer.py
a checkpoint of a large result             test_memoizer.py, TestCheckpoints
a worker killed after it has stored        test_retries.py
a dependency that fails                    test_lifetimes.py, TestInputs
cleanup with tasks that are not final      test_ends.py
=========================================  ====================================================
"""

from __future__ import annotations

import gc

import numpy as np
import pytest
from parsl_tasks import (
    double,
    fail_stubbornly,
    give_what_fails_to_unpickle,
    ones,
    small,
    total,
    total_of_all,
)

pytestmark = pytest.mark.parsl

MEGABYTES = 125_000  # floats


def test_a_chain_of_100_mb_takes_20_kb_of_the_submit_process(app, executor):
    assert app(total)(app(double)(app(ones)(100 * MEGABYTES))).result() == 200 * MEGABYTES
    assert sum(executor.sent) + sum(executor.received) < 20_000


def test_two_consumers_and_the_result_itself(app, objects):
    made = app(ones)(20_000)
    assert [app(total)(made).result(), app(total)(made).result()] == [20_000, 20_000]
    assert made.result().sum() == 20_000
    assert len(objects) == 1


def test_of_30_stages_a_few_objects_are_there_at_a_time(app, objects):
    gc.disable()
    try:
        step, most = app(double), 0
        future = app(ones)(20_000)
        for _ in range(29):
            future = step(future)
            future.exception()
            most = max(most, len(objects))
        assert most <= 6  # eviction is a moment behind
        objects.wait_until(1)
        del future
        objects.wait_until(0)
    finally:
        gc.enable()


def test_a_tiny_task_is_not_behind_30_mb(app, executor):
    large = [app(total)(np.ones(10 * MEGABYTES) * i) for i in range(3)]
    assert app(small)("int").result() == 1
    assert [future.result() for future in large] == [10 * MEGABYTES * i for i in range(3)]
    assert sum(executor.sent) < 40_000  # Parsl sends one after the other


def test_what_monitoring_writes_down_is_small(app, array):
    future = app(total_of_all)(array, inputs=[array, app(ones)(20_000)])
    assert future.result() == 2 * array.sum() + 20_000
    record = future.task_record
    # Parsl's database gets the text of a task's inputs.
    assert len(str(record["kwargs"]["inputs"])) < 500
    assert len(str(record["args"])) < 500


def test_nothing_that_goes_wrong_ends_the_executor(app, array):
    for bad in (app(fail_stubbornly), app(give_what_fails_to_unpickle)):
        futures = [bad(10) for _ in range(4)]
        assert all(future.exception() is not None for future in futures)
    assert app(total)(array).result() == array.sum()
