"""The embedded store: where it is, who removes it, and what a killed owner leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from proxystore.connectors.exceptions import StoreDirectoryError
from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.store import Store, StoreConfig, get_store, unregister_store
from proxystore.store.exceptions import (
    ConnectorOptionsError,
    StoreConfigError,
    UnknownConnectorError,
)
from proxystore.workflow import embedded, open_store

PRELUDE = """
import logging, os, signal, sys
logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
from pathlib import Path
from proxystore.workflow import embedded, embedded_store
embedded.MEMORY = Path(os.environ["MEMORY"])
embedded.ENOUGH_ROOM = int(os.environ.get("ENOUGH_ROOM", 0))
"""


@pytest.fixture
def run(tmp_path):
    """Run a script with an embedded store in a process of its own."""
    (tmp_path / "memory").mkdir()
    places = {"MEMORY": str(tmp_path / "memory"), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(script, **environment):
        return subprocess.run(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
            env={**os.environ, **places, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def files(tmp_path):
    return sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())


def test_nothing_is_left_at_exit_not_even_a_directory(run, tmp_path):
    run("embedded_store().put('x')")
    assert os.listdir(tmp_path / "memory") == []


HUGE = str(1 << 62)
SHOW = "s = embedded_store(); k = s.put('x'); print(s.connector.store_dir); print(s)"


def test_memory_is_first(run, tmp_path):
    done = run(SHOW)
    directory, shown = done.stdout.splitlines()
    assert Path(directory).parent == tmp_path / "memory" / f"proxystore-{os.geteuid()}"
    assert directory in shown
    assert "in memory" in done.stderr
    assert directory in done.stderr
    assert files(tmp_path) == [], "removed at exit"


def test_then_the_variable_then_the_cache(run, tmp_path):
    named = run(SHOW, ENOUGH_ROOM=HUGE, PROXYSTORE_DIR=str(tmp_path / "named"))
    assert Path(named.stdout.splitlines()[0]).parent == tmp_path / "named"
    cached = run(SHOW, ENOUGH_ROOM=HUGE, PROXYSTORE_DIR="")
    assert Path(cached.stdout.splitlines()[0]).parent == tmp_path / "cache" / "proxystore"
    assert files(tmp_path) == []


def test_what_other_hosts_have_to_see_is_not_in_memory(run, tmp_path):
    done = run("print(embedded_store(shared=True).connector.store_dir)")
    assert Path(done.stdout.strip()).parent == tmp_path / "cache" / "proxystore"


def test_directories_are_private_and_there_is_one_store_a_process(run):
    done = run(
        """
        s = embedded_store()
        assert embedded_store() is s
        assert embedded_store(shared=True) is not s
        base = Path(s.connector.store_dir).parent
        for path in (base, s.connector.store_dir):
            assert os.stat(path).st_mode & 0o777 == 0o700
        """
    )
    assert done.returncode == 0, done.stderr


def test_a_forked_child_removes_nothing_and_has_its_own(run, tmp_path):
    done = run(
        """
        s = embedded_store()
        key = s.put("x")
        if not (pid := os.fork()):
            assert embedded_store() is not s
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        print(s.exists(key))
        """
    )
    assert done.stdout == "True\n", done.stderr
    assert files(tmp_path) == []


# SIGTERM is what a batch system sends first, SIGKILL what it sends half a minute later.
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_process_left_is_removed_by_the_next(run, tmp_path, by):
    killed = run(f"embedded_store().put(bytes(100_000)); os.kill(os.getpid(), {by:d})")
    assert killed.returncode == -by
    assert len(files(tmp_path)) == 2
    after = run("embedded_store()")
    assert "removed 1" in after.stderr
    assert files(tmp_path) == []


def test_what_a_living_process_has_stays(run, tmp_path):
    done = run(
        """
        import subprocess
        s = embedded_store()
        key = s.put("x")
        second = sys.orig_argv[-1].partition("import subprocess")[0]
        subprocess.run([sys.executable, "-c", second + "embedded_store()"], check=True)
        print(s.exists(key))
        """
    )
    assert done.stdout == "True\n", done.stderr
    assert "removed 0" in done.stderr


@pytest.mark.parametrize(
    ("owner", "goes"),
    [
        ({"host": "elsewhere", "boot_id": "x", "pid": 1}, False),
        ({**embedded._here(), "boot_id": "an earlier boot", "pid": 1}, True),
        ({**embedded._here(), "pid": 1}, True),
        ({"what": "is this"}, False),
    ],
)
def test_only_the_provably_dead_are_cleared(run, tmp_path, owner, goes):
    base = tmp_path / "memory" / f"proxystore-{os.geteuid()}"
    left = base / "embedded-01234567"
    left.mkdir(parents=True)
    (left / "9d4c3f4e-1234-4a4a-9a9a-1234567890ab").write_text("object")
    left.with_suffix(".owner").write_text(json.dumps(owner))
    run("embedded_store()")
    assert left.exists() is not goes
    assert left.with_suffix(".owner").exists() is not goes


def test_what_a_worker_stored_after_its_owner_has_gone_is_removed(run, tmp_path):
    base = tmp_path / "memory" / f"proxystore-{os.geteuid()}"
    for name in ("embedded-01234567", "embedded-89abcdef", "the user's"):
        (base / name).mkdir(parents=True)
    for name in ("embedded-01234567", "the user's"):
        (base / name / "9d4c3f4e-1234-4a4a-9a9a-1234567890ab").write_text("object")
    run("embedded_store()")
    assert os.listdir(base) == ["the user's"]
    assert len(os.listdir(base / "the user's")) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away needs to be root")
def test_a_base_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "ENOUGH_ROOM", 1 << 62)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    monkeypatch.setenv("PROXYSTORE_DIR", str(theirs))
    with pytest.raises(StoreDirectoryError, match="belongs to user 12345"):
        embedded._make(False)


# -- naming a store


def test_a_store_is_itself_and_gets_registered():
    store = Store("opened", LocalConnector())
    assert open_store(store) is store
    assert get_store("opened") is store
    assert open_store(store) is store
    unregister_store(store)


def test_a_configuration_and_a_file_make_a_store(tmp_path):
    config = StoreConfig(
        name="from-config", connector={"kind": "file", "options": {"store_dir": str(tmp_path)}}
    )
    store = open_store(config)
    config.write_toml(tmp_path / "store.toml")
    assert open_store(tmp_path / "store.toml") is store
    assert open_store(str(tmp_path / "store.toml")) is store
    unregister_store(store)


def test_no_store_is_the_embedded_one():
    assert open_store(None) is embedded.embedded_store()


@pytest.mark.parametrize(
    ("connector", "error"),
    [
        ({"kind": "no.such.Thing"}, UnknownConnectorError),
        ({"kind": "file", "options": {"dir": "x"}}, ConnectorOptionsError),
    ],
)
def test_a_wrong_configuration_is_refused_also_under_a_known_name(tmp_path, connector, error):
    store = open_store(Store("known", FileConnector(tmp_path / "objects")))
    with pytest.raises(error):
        open_store(StoreConfig(name="known", connector=connector))
    unregister_store(store)


@pytest.mark.parametrize("spec", [3, object(), LocalConnector()])
def test_anything_else_is_refused(spec):
    with pytest.raises(TypeError, match="a store must be a Store"):
        open_store(spec)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(StoreConfigError, match=r"no/such\.toml"):
        open_store("no/such.toml")
