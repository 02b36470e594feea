"""Contract 1.1, 1.2 and 20: the package itself, its warnings and proxystore.utils."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import io
import itertools
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import types
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import proxystore
import proxystore.utils
from proxystore.utils import config
from proxystore.utils.counter import AtomicCounter
from proxystore.utils.data import bytes_to_readable, chunk_bytes, readable_to_bytes
from proxystore.utils.environment import home_dir, hostname
from proxystore.utils.imports import get_object_path, import_from_path
from proxystore.utils.tasks import (
    SafeTaskExitError,
    exit_on_error,
    spawn_guarded_background_task,
)
from proxystore.utils.timer import Timer
from proxystore.warnings import ExperimentalWarning


def modules_after(statement: str) -> set[str]:
    """Return the names of the modules a fresh interpreter has after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


# --- 1: the package


def test_version_is_the_installed_one_and_dotted_integers() -> None:
    assert proxystore.__version__ == importlib.metadata.version("proxystore")
    assert all(int(part) >= 0 for part in proxystore.__version__.split("."))


def test_importing_the_package_imports_no_submodule() -> None:
    assert not [name for name in modules_after("import proxystore") if "proxystore." in name]


def test_experimental_warning_is_a_warning() -> None:
    assert issubclass(ExperimentalWarning, Warning)


# --- 20: re-exports


@pytest.mark.parametrize(
    "name",
    [
        "bytes_to_readable",
        "chunk_bytes",
        "readable_to_bytes",
        "home_dir",
        "hostname",
        "get_object_path",
        "import_from_path",
    ],
)
def test_utils_re_exports(name: str) -> None:
    assert callable(getattr(proxystore.utils, name))
    assert name in proxystore.utils.__all__


def test_importing_utils_is_cheap() -> None:
    assert not modules_after("import proxystore.utils") & {"pydantic", "asyncio", "tomli_w"}


# --- 20.1: utils.data


@pytest.mark.parametrize(
    ("size", "precision", "text"),
    [
        (0, 3, "0 B"),
        (999, 3, "999 B"),
        (1000, 3, "1 KB"),
        (10**15, 3, "1000 TB"),
        (10**15, 0, "1000 TB"),
        (1001, 3, "1.001 KB"),
        (1001, 1, "1 KB"),
        (1001, 0, "1 KB"),
        (123456789, 3, "123.457 MB"),
        (4 * 10**13, 3, "40 TB"),
    ],
)
def test_bytes_to_readable(size: int, precision: int, text: str) -> None:
    assert bytes_to_readable(size, precision) == text


def test_bytes_to_readable_default_precision_is_three() -> None:
    assert bytes_to_readable(123456789) == "123.457 MB"


def test_bytes_to_readable_refuses_negative_sizes() -> None:
    with pytest.raises(ValueError, match="negative"):
        bytes_to_readable(-1)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0 B", 0),
        ("0", 0),
        ("4096", 4096),
        ("1 KB", 1000),
        ("1KB", 1000),
        ("1 kb", 1000),
        ("1.001 KB", 1001),
        ("1.0001 KB", 1000),
        ("123.457 MB", 123457000),
        ("1000 TB", 10**15),
        ("0.6 MiB", 629145),
        ("1 kib", 2**10),
        ("1 MiB", 2**20),
        ("1 GiB", 2**30),
        ("1 TiB", 2**40),
        ("2 GB", 2 * 10**9),
    ],
)
def test_readable_to_bytes(text: str, size: int) -> None:
    assert readable_to_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 B GB", "value and a unit"),
        ("GB", "value and a unit"),
        ("", "value and a unit"),
        ("1 XB", "Unknown unit"),
        ("1XB", "Unknown unit"),
        ("1.0.0 KB", "float"),
        ("one KB", "float"),
        ("nan KB", "float"),
        ("inf KB", "float"),
        ("-1 KB", "negative"),
    ],
)
def test_readable_to_bytes_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        readable_to_bytes(text)


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 123456789, 10**15 + 1])
def test_a_size_written_in_full_reads_back(size: int) -> None:
    assert readable_to_bytes(bytes_to_readable(size, precision=12)) == size


@pytest.mark.parametrize(
    ("data", "chunk_size", "chunks"),
    [
        (b"", 3, []),
        (b"abc", 3, [b"abc"]),
        (b"abcd", 3, [b"abc", b"d"]),
        (b"ab", 5, [b"ab"]),
        (bytearray(b"abc"), 2, [bytearray(b"ab"), bytearray(b"c")]),
        (memoryview(b"abc"), 2, [b"ab", b"c"]),
    ],
)
def test_chunk_bytes(data: bytes, chunk_size: int, chunks: list[bytes]) -> None:
    found = chunk_bytes(data, chunk_size)
    assert isinstance(found, types.GeneratorType)
    found_chunks = list(found)
    assert found_chunks == chunks
    assert b"".join(found_chunks) == data


def test_chunk_size_is_checked_by_the_call() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        chunk_bytes(b"abc", 0)


# --- 20.2: utils.environment


@pytest.mark.parametrize(
    ("variables", "path"),
    [
        ({"PROXYSTORE_HOME": "/a", "XDG_DATA_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_DATA_HOME": "/b", "HOME": "/c"}, "/b/proxystore"),
        ({"HOME": "/c"}, "/c/.local/share/proxystore"),
        ({"PROXYSTORE_HOME": "", "XDG_DATA_HOME": "", "HOME": "/c"}, "/c/.local/share/proxystore"),
    ],
)
def test_home_dir(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], path: str) -> None:
    for name in ("PROXYSTORE_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert home_dir() == path


def test_home_dir_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROXYSTORE_HOME", "some/dir")
    assert home_dir() == os.path.join(os.getcwd(), "some", "dir")


def test_hostname() -> None:
    assert hostname() == socket.gethostname()


# --- 20.2: utils.imports


class Outer:
    """To be found by path."""

    class Inner:
        """To be found by path too."""

        def method(self) -> None: ...


@pytest.mark.parametrize("obj", [Outer, Outer.Inner, Outer.Inner.method, home_dir, Path, print])
def test_an_object_is_found_by_its_path(obj: Any) -> None:
    path = get_object_path(obj)
    assert path == f"{obj.__module__}.{obj.__qualname__}"
    assert import_from_path(path) is obj


@pytest.mark.parametrize(
    ("path", "obj"),
    [("typing.Any", Any), ("os.path.join", os.path.join), ("xml.dom.minidom.Node.TEXT_NODE", 3)],
)
def test_import_from_path(path: str, obj: Any) -> None:
    assert import_from_path(path) is obj


@pytest.mark.parametrize(
    "path",
    ["nodot", "", ".", "typing.", ".Any", "no_such_module.x", "os.no_such_name", "os.path.x.y"],
)
def test_a_path_to_nowhere_is_an_import_error(path: str) -> None:
    with pytest.raises(ImportError):
        import_from_path(path)


def test_a_module_that_cannot_be_imported_is_not_taken_for_a_missing_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "needs_more.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        import_from_path("needs_more.Connector")


@pytest.mark.parametrize("obj", [1, partial(print)])
def test_what_has_no_name_has_no_path(obj: object) -> None:
    with pytest.raises(TypeError, match="only classes and functions"):
        get_object_path(obj)


# --- 20.2: utils.timer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Stop the clock that timers read; return a function that advances it by nanoseconds."""
    now = 10**9

    def advance(ns: int) -> None:
        nonlocal now
        now += ns

    monkeypatch.setattr("time.perf_counter_ns", lambda: now)
    return advance


def test_timer_measures_a_block(clock: Callable[[int], None]) -> None:
    with Timer() as timer:
        clock(2_500_000)
    clock(10**9)
    assert isinstance(timer.elapsed_ns, int)
    assert timer.elapsed_ns == 2_500_000
    assert timer.elapsed_ms == 2.5
    assert timer.elapsed_s == 0.0025


def test_timer_measures_from_start_to_the_first_stop(clock: Callable[[int], None]) -> None:
    timer = Timer()
    assert timer.start() is timer
    clock(5)
    assert timer.stop() is timer
    clock(5)
    assert timer.stop().elapsed_ns == 5
    timer.start()
    clock(7)
    assert timer.stop().elapsed_ns == 7


@pytest.mark.parametrize("name", ["elapsed_ns", "elapsed_ms", "elapsed_s"])
def test_a_running_timer_cannot_be_read(name: str) -> None:
    with Timer() as timer, pytest.raises(RuntimeError, match="Timer is still running!"):
        getattr(timer, name)


def test_timer_stops_when_its_block_fails(clock: Callable[[int], None]) -> None:
    timer = Timer()

    def fail() -> None:
        with timer:
            clock(3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert timer.elapsed_ns == 3


# --- 20.2: utils.counter


def test_counter_gives_the_value_before() -> None:
    counter = AtomicCounter()
    assert [counter.increment() for _ in range(4)] == [0, 1, 2, 3]


def test_counter_ends_at_its_size() -> None:
    counter = AtomicCounter(size=2)
    assert [counter.increment(), counter.increment()] == [0, 1]
    for _ in range(2):
        with pytest.raises(ValueError, match="all of its 2 numbers"):
            counter.increment()


def test_no_two_threads_get_the_same_number(at_once: Callable[..., list[Any]]) -> None:
    counter = AtomicCounter()
    found = at_once(*[lambda: [counter.increment() for _ in range(2_000)]] * 4)
    assert sorted(itertools.chain(*found)) == list(range(8_000))


def test_threads_do_not_pass_the_end_together(at_once: Callable[..., list[Any]]) -> None:
    together = threading.Barrier(2)

    class Size(int):
        """Holds up who looks at it until the other thread looks too."""

        def __le__(self, count: int) -> bool:
            with contextlib.suppress(threading.BrokenBarrierError):  # the other is kept out
                together.wait(timeout=0.1)
            return int(self) <= count

    counter = AtomicCounter(Size(1))

    def try_increment() -> int | None:
        try:
            return counter.increment()
        except ValueError:
            return None

    assert set(at_once(try_increment, try_increment)) == {0, None}


# --- 20.2: utils.config


class Address(BaseModel):
    """A nested model."""

    host: str
    port: int = 0


class Settings(BaseModel):
    """A model of every shape."""

    model_config = ConfigDict(extra="forbid")

    name: str
    address: Address
    size: int | None = None
    ratio: float = 0.5
    tags: list[str] = Field(default_factory=list)


SETTINGS = Settings(name="x", address=Address(host="h", port=1), tags=["a", "b"])
TOML = textwrap.dedent("""\
    name = "x"
    ratio = 0.5
    tags = [
        "a",
        "b",
    ]

    [address]
    host = "h"
    port = 1
    """)


def test_config_is_written_as_toml() -> None:
    assert config.dumps(SETTINGS) == TOML


def test_config_is_read_from_toml() -> None:
    assert config.loads(Settings, TOML) == SETTINGS


def test_config_files_are_binary(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    settings = SETTINGS.model_copy(update={"name": "größer"})
    with path.open("wb") as fp:
        config.dump(settings, fp)
    with path.open("rb") as fp:
        assert config.load(Settings, fp) == settings


def test_none_is_left_out_or_refused() -> None:
    assert "size" not in config.dumps(SETTINGS)
    with pytest.raises(TypeError):
        config.dumps(SETTINGS, exclude_none=False)
    with pytest.raises(TypeError):
        config.dump(SETTINGS, io.BytesIO(), exclude_none=False)


@pytest.mark.parametrize(
    ("line", "field"),
    [("size = '1'", "size"), ("ratio = '0.5'", "ratio"), ("tags = 'a'", "tags"), ("x = 1", "x")],
)
def test_config_is_read_strictly(line: str, field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        config.loads(Settings, f"{line}\nname = 'x'\naddress = {{ host = 'h' }}")


def test_an_integer_is_a_number_for_a_float() -> None:
    text = "ratio = 1\nname = 'x'\naddress = { host = 'h' }"
    assert config.loads(Settings, text).ratio == 1.0


def test_malformed_toml_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="line 1"):
        config.loads(Settings, "name =\n")


# --- 20.2: utils.tasks


async def raise_error(error: BaseException) -> None:
    """Raise `error`."""
    raise error


async def until_cancelled() -> None:
    """Wait for ever."""
    await asyncio.Event().wait()


def test_guarded_task_returns_what_its_function_does() -> None:
    async def add(a: int, *, b: int) -> int:
        return a + b

    async def main() -> int:
        return await spawn_guarded_background_task(add, 1, b=2)

    assert asyncio.run(main()) == 3


def test_failure_of_a_guarded_task_is_logged_and_ends_the_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = []

    async def main() -> None:
        tasks.append(spawn_guarded_background_task(raise_error, OSError("no disk")))
        await until_cancelled()

    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as exit_info:
        asyncio.run(main())
    assert exit_info.value.code == 1
    assert isinstance(tasks[0].exception(), OSError), "raised again in the task"
    messages = [record.getMessage() for record in caplog.records]
    assert any("Traceback" in message and "no disk" in message for message in messages)


def test_leaving_a_guarded_task_on_purpose_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> str:
        task = spawn_guarded_background_task(raise_error, SafeTaskExitError("enough"))
        with pytest.raises(SafeTaskExitError, match="enough"):
            await task
        await asyncio.sleep(0)  # callbacks of the task have run
        return "done"

    assert asyncio.run(main()) == "done"
    assert not caplog.records


def test_cancelling_a_guarded_task_ends_nothing() -> None:
    async def main() -> str:
        task = spawn_guarded_background_task(until_cancelled)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        return "done"

    assert asyncio.run(main()) == "done"


def test_a_guarded_task_lives_until_it_is_done() -> None:
    """Asyncio alone forgets a task that waits for what nobody else refers to."""
    waiting: list[weakref.ref[asyncio.Event]] = []

    async def wait() -> str:
        event = asyncio.Event()
        waiting.append(weakref.ref(event))
        await event.wait()
        return "done"

    async def main() -> None:
        spawn_guarded_background_task(wait)
        await asyncio.sleep(0)
        gc.collect()
        event = waiting[0]()
        assert event is not None
        event.set()

    asyncio.run(main())


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x")])
def test_exit_on_error_exits_when_a_task_failed(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        task = asyncio.create_task(raise_error(error))
        await asyncio.wait([task])
        with pytest.raises(SystemExit, match="1"):
            exit_on_error(task)

    asyncio.run(main())
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert repr(error) in caplog.text


@pytest.mark.parametrize("error", [None, SafeTaskExitError(), asyncio.CancelledError()])
def test_exit_on_error_lets_other_tasks_be(error: BaseException | None) -> None:
    async def main() -> bool:
        task = asyncio.create_task(asyncio.sleep(0) if error is None else raise_error(error))
        await asyncio.wait([task])
        exit_on_error(task)
        return task.done()

    assert asyncio.run(main())
