#!/usr/bin/env python3
"""Run Parsl's own test suite twice, as it is and with our decorators in place of Parsl's.

    tools/parsl_suite.py                          Parsl's HighThroughputExecutor configuration
    tools/parsl_suite.py --config local           tests that bring a configuration of their own
    tools/parsl_suite.py test_python_apps -k join folders or files of the suite, options of pytest
    tools/parsl_suite.py --threshold 1            everything by reference, however small
    tools/parsl_suite.py --executors              executors with a store besides, as by `with_store`

The tests are those of the Parsl that is installed, or of a source checkout: PARSL_SOURCE=directory.
Prints what differs, and exits with 1 if something passes only without us.

For use by hand: takes minutes (`local`: half an hour), and some tests need a network, a package
that is not here, or a user who is not root. A test that depends on time may differ by chance: run
it again by itself. With --threshold 1, two tests of arguments that Parsl has no memo id for find
that they have one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # not where nothing is swapped
    from proxystore_parsl import StoreApps

# The suites need no wheel of ours, but may be run before one is installed.
ROOT = Path(__file__).resolve().parents[1]

# How this file, as a plugin of pytest, knows what to do.
WAY, REPORT, THRESHOLD = "PARSL_SUITE_WAY", "PARSL_SUITE_REPORT", "PARSL_SUITE_THRESHOLD"

# Parsl leaves these out, too: services and batch systems, and hundreds of blocks.
LEFT_OUT = ["integration", "manual_tests", "site_tests", "sites", "test_radical", "test_flux.py"]
# So that one that hangs does not hide the others.
SECONDS_PER_TEST = 120

BAD = ("failed", "error", "hung or crashed")


def main() -> int:
    """Run the suite both ways and print the difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="htex_local", help="of parsl/tests/configs, or 'local'")
    parser.add_argument("--threshold", default="128 KiB", help="as for StoreApps")
    parser.add_argument("--executors", action="store_true", help="wrap executors, not decorators")
    parser.add_argument("--only", choices=["plain", "ours"], help="one way, without a comparison")
    options, rest = parser.parse_known_args()

    found = {
        way: run(way, options, rest) for way in ("plain", "ours") if options.only in (None, way)
    }
    for way, outcomes in found.items():
        counts = collections.Counter(outcomes.values())
        print(f"{way}: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    if options.only:
        return 0
    worse = differing(found["plain"], found["ours"], "only without us")
    differing(found["ours"], found["plain"], "only with us")
    both = [test for test, what in found["plain"].items() if what in BAD]
    print(f"fail without us: {len(both)}")
    for test in both:
        print(f"    {test}")
    return 1 if worse else 0


def differing(good: dict[str, str], bad: dict[str, str], where: str) -> list[str]:
    """Print and return the tests that pass in `good` and do not in `bad`."""
    tests = [t for t, what in good.items() if what == "passed" and bad.get(t) != "passed"]
    print(f"pass {where}: {len(tests)}")
    for test in tests:
        print(f"    {test}: {bad.get(test, 'not run')}")
    return tests


def run(way: str, options: argparse.Namespace, rest: list[str]) -> dict[str, str]:
    """Return the outcome of each test."""
    source = os.environ.get("PARSL_SOURCE")
    path = [str(ROOT / "tools"), *([source] if source else [])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
        # Parsl starts its helper programs by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        WAY: "plain" if way == "plain" else "executors" if options.executors else "decorators",
        THRESHOLD: options.threshold,
    }
    with tempfile.TemporaryDirectory(prefix="parsl-suite-", ignore_cleanup_errors=True) as home:
        where = subprocess.run(
            [sys.executable, "-c", "import parsl.tests; print(parsl.tests.__path__[0])"],
            env=environment,
            cwd=home,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        tests = Path(where.stdout.strip())
        config = options.config
        if config != "local":
            config = str(tests / "configs" / f"{config}.py")
        report = Path(home, "report")
        report.touch()
        ini = Path(home, "pytest.ini")  # not ours, which makes errors of Parsl's warnings
        ini.write_text("[pytest]\n")
        chosen = [str(tests / arg) if (tests / arg).exists() else arg for arg in rest]
        if not any(arg.startswith(str(tests)) for arg in chosen):
            chosen.append(str(tests))
        command = [sys.executable, "-m", "pytest", "-c", str(ini), f"--rootdir={tests}"]
        command += ["-p", "no:cacheprovider", "-p", "parsl_suite"]
        # Parsl's conftest.py as a plugin: newer versions of pytest refuse one of its hooks.
        command += ["--noconftest", "-p", "parsl.tests.conftest", "--config", config]
        command += [f"--ignore={tests / each}" for each in LEFT_OUT]
        command += [
            "-q",
            "--tb=short",
            "--continue-on-collection-errors",
            f"--timeout={SECONDS_PER_TEST}",
            *chosen,
        ]
        child = subprocess.Popen(
            command, env={**environment, REPORT: str(report)}, cwd=home, start_new_session=True
        )
        try:
            child.wait()
        finally:
            # Interchanges and workers of tests that failed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        outcomes: dict[str, str] = {}
        for line in report.read_text().splitlines():
            test, outcome = json.loads(line)
            outcomes[test] = outcome
        return outcomes


# -- a plugin of pytest, in the child


def write_down(test: str, outcome: str) -> None:
    """Add a line to the report; the last one of a test counts."""
    with open(os.environ[REPORT], "a") as file:
        file.write(json.dumps([test, outcome]) + "\n")


def pytest_collectreport(report: Any) -> None:
    """Write down what cannot be imported."""
    if report.failed:
        write_down(report.nodeid, "error")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Suppose that a test takes the process down."""
    write_down(nodeid, "hung or crashed")


_outcomes: dict[str, str] = {}


def pytest_runtest_logreport(report: Any) -> None:
    """Write down the outcome: of the call, unless setting up or tearing down has failed."""
    test, when, outcome = report.nodeid, report.when, report.outcome
    if when == "setup" or outcome != "passed":
        what = "error" if when != "call" and outcome == "failed" else outcome
        _outcomes[test] = what
    if when == "teardown":
        write_down(test, _outcomes[test])


def pytest_sessionfinish() -> None:
    """Say what our decorators have done."""
    if _apps is None:
        return
    gc.collect()
    print(f"\nbefore close: {_apps.stats()}")
    _apps.close()
    print(f"after close: {_apps.stats()}")


def swap(way: str) -> StoreApps:
    """Put ours in the place of what the tests import of Parsl."""
    import parsl.app.app
    import parsl.concurrent

    from proxystore_parsl import StoreApps, with_store

    threshold = os.environ[THRESHOLD]
    apps = StoreApps(threshold=int(threshold) if threshold.isdecimal() else threshold)
    if way == "executors":
        add = parsl.DataFlowKernel.add_executors

        def add_with_store(self: Any, executors: list[Any]) -> None:
            add(self, [with_store(each, apps) for each in executors])

        parsl.DataFlowKernel.add_executors = add_with_store
    else:
        for name in ("python_app", "bash_app", "join_app"):
            for module in (parsl, parsl.app.app, parsl.concurrent):
                if hasattr(module, name):
                    setattr(module, name, getattr(apps, name))
    return apps


_apps: StoreApps | None = None
if WAY in os.environ:
    import parsl.tests.conftest

    del parsl.tests.conftest.pytest_ignore_collect
    if os.environ[WAY] != "plain":
        _apps = swap(os.environ[WAY])

if __name__ == "__main__":
    raise SystemExit(main())
