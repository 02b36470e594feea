"""Whole programs, on the default store: what is defined in them, and what they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.parsl

START = """
import os

import numpy as np
import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from proxystore_parsl import default_apps, python_app


class Points:
    def __init__(self, x):
        self.x = x

    def norm(self):
        return float(self.x.sum())


@python_app
def norm(points):
    return points.norm()


@python_app
def same(points):
    return points


class WrongPointsError(Exception):
    pass


@python_app
def refuse(error):
    raise error("text")


@python_app
def wait(points):
    import threading

    threading.Event().wait()


def load():
    return parsl.load(
        Config(
            executors=[
                HighThroughputExecutor(
                    address="127.0.0.1",
                    encrypted=False,
                    max_workers_per_node=1,
                    cores_per_worker=1e-6,
                    provider=LocalProvider(init_blocks=1, max_blocks=1),
                )
            ],
            run_dir="run",
            strategy="none",
            initialize_logging=False,
        )
    )
"""


@pytest.fixture
def run(tmp_path: Path):
    """Run a program; return what it printed. It must leave nothing in its store."""
    home = tmp_path / "objects"

    def run(body: str, code: int = 0) -> list[str]:
        program = tmp_path / "program.py"
        program.write_text(f"{START}\n\nif __name__ == '__main__':\n{body}")
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(home),
        }
        result = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", str(program)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == code, result.stderr
        return result.stdout.splitlines()

    return run


def store_of(line: str) -> Path:
    """Return the directory that a program's StoreApps has shown."""
    return Path(line.partition("'store_dir': '")[2].partition("'")[0])


def test_leave_nothing(run):
    kind, small, refused, size, error, store = run(
        """
    with load() as kernel:
        points = Points(np.ones(100_000))
        result = same(points).result()
        print(isinstance(result, Points), type(result).__name__)
        print(type(same(Points([1])).result()) is Points)
        print(type(refuse(WrongPointsError).exception()) is WrongPointsError)
        print(norm(points).result() + norm(same(points)).result())
        pending = wait(points)
    print(type(pending.exception()).__name__)
    print(default_apps().store)
"""
    )
    assert kind == "True Proxy"  # though the program's classes are not importable elsewhere
    assert (small, refused) == ("True", "True")
    assert size == "200000.0"
    assert error == "ClosedError"
    assert store_of(store).is_absolute()
    assert not store_of(store).exists()  # though the program kept a result to its end


def test_killed_is_swept_by_the_next_one(run):
    """That it is so for what tasks have stored, too, `tests/chaos` looks at."""
    (store,) = run(
        """
    kept = default_apps().put(np.ones(100_000))
    print(default_apps().store, flush=True)
    os.kill(os.getpid(), 9)
""",
        code=-signal.SIGKILL,
    )
    assert list(store_of(store).iterdir())
    run("    default_apps().put(np.ones(10))")
    assert not store_of(store).exists()
