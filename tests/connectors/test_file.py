"""FileConnector beyond the contract: whole files, private mappings, nobody else's data."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from proxystore.connectors import file as file_module
from proxystore.connectors.exceptions import StorageFullError, StoreDirectoryError
from proxystore.connectors.file import FileConnector, FileKey
from proxystore.serialize import frames
from proxystore.store import Store
from proxystore.testing import check_connector

LARGE = 5_000_000


@pytest.mark.parametrize("mmap", [True, False])
def test_keeps_the_contract_mapped_or_read(tmp_path, mmap):
    with FileConnector(tmp_path / "store", mmap=mmap) as connector:
        check_connector(connector)
        assert connector.config()["mmap"] is mmap


@pytest.mark.parametrize("mmap", [True, False])
def test_large_data_can_be_written_to_without_changing_the_file(tmp_path, mmap):
    connector = FileConnector(tmp_path, mmap=mmap)
    key = connector.put(bytes(LARGE))
    first, second = connector.get(key), connector.get(key)
    first[0] = 1
    assert second[0] == 0
    assert connector.get(key)[0] == 0


def test_a_mapping_outlives_eviction_and_replacement(tmp_path):
    connector = FileConnector(tmp_path, mmap=True)
    key = connector.put(b"old" * LARGE)
    data = connector.get(key)
    connector.set(key, b"new" * LARGE)
    assert data[:3] == b"old"
    connector.evict(key)
    assert data[-3:] == b"old"


def test_an_array_is_mapped_not_read(tmp_path):
    connector = FileConnector(tmp_path, mmap=True)
    key = connector.put_buffers(frames.dump(np.arange(1_000_000.0)).parts)
    array = frames.load(connector.get(key), verify=False)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert key.filename in maps.read()
    assert array[-1] == 999_999.0


MEMORY = """
import sys
import numpy as np
from proxystore.connectors.file import FileConnector
from proxystore.store import Store

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

def extra(function, *args):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # reset the peak
    before = status("VmRSS")
    result = function(*args)
    return result, status("VmHWM") - before

store = Store("memory", FileConnector(sys.argv[1], mmap=sys.argv[2] == "mapped"))
array = np.ones(8_000_000)
small = store.get(store.put(np.ones(10_000)))  # what is imported once, is now
key, put = extra(store.put, array)
again, get = extra(store.get, key)
assert again[-1] == 1
print(put, get)
"""


@pytest.mark.parametrize("how", ["mapped", "read"])
def test_objects_are_not_copied_on_their_way(tmp_path, how):
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "objects"), how],
        check=True,
        capture_output=True,
        text=True,
    )
    put, get = (int(word) / 62_500 for word in run.stdout.split())
    assert put < 0.08, "times the size of the object"
    if how == "mapped":
        assert get < 0.08
    else:
        assert 0.9 < get < 1.1, "the memory it is read into, which shows that this measures"


def test_readers_see_whole_objects_while_one_is_replaced(tmp_path):
    connector = FileConnector(tmp_path)
    values = {bytes([i]) * LARGE for i in range(4)}
    key = connector.put(next(iter(values)))
    done = threading.Event()
    torn = []

    def read():
        while not done.is_set():
            if bytes(connector.get(key)) not in values:
                torn.append(1)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(5):
        for value in values:
            connector.set(key, value)
    done.set()
    for reader in readers:
        reader.join()
    assert not torn
    assert os.listdir(tmp_path) == [key.filename]


def test_readers_of_what_is_evicted_get_all_of_it_or_nothing(tmp_path, at_once):
    connector = FileConnector(tmp_path)
    data = bytes(range(256)) * 300

    def use(function):  # all go through the keys together
        return [function(key) for key in keys]

    for _ in range(5):
        keys = [connector.put(data) for _ in range(300)]
        *found, there, _ = at_once(
            *[lambda: use(connector.get)] * 3,
            lambda: use(connector.exists),
            lambda: use(connector.evict),
        )
        assert {each is None or each == data for values in found for each in values} == {True}
        assert set(there) <= {True, False}
        assert not any(use(connector.exists)), "gone with its data"
        assert set(use(connector.get)) == {None}


def test_an_object_is_one_file(tmp_path):
    store = Store("files", FileConnector(tmp_path / "objects"))
    for obj in ([1], "text", np.zeros(100_000), [np.zeros(100_000)] * 3):
        store.put(obj)
    found = os.listdir(tmp_path / "objects")
    assert len(found) == 4
    assert all(os.stat(tmp_path / "objects" / name).st_nlink == 1 for name in found)


OPERATIONS = """
import os, sys
from proxystore.connectors.file import FileConnector
from proxystore.store import Store
store = Store("traced", FileConnector(sys.argv[1]), cache_size=0)
def do(name, function, things):
    found = [function(thing) for thing in things]
    os.access(f"/end of {name}", os.F_OK)
    return found
keys = do("warming up", store.put, [0])
for name in ("get", "exists", "evict"):  # what is found out once, is now
    do("warming up", getattr(store, name), keys)
keys = do("put", store.put, range(10))
for name in ("get", "exists", "evict"):
    do(name, getattr(store, name), keys)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_operations_ask_little_of_the_metadata_server(tmp_path):
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-o", trace, "-e", "trace=%file,openat,fsync,mkdir,getdents64"]
    command += [sys.executable, "-c", OPERATIONS, str(tmp_path / "objects")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("strace cannot trace here")
    calls = {}
    names = []
    for line in trace.read_text().splitlines():
        if (end := re.search(r'"/end of (.*?)"', line)) is not None:
            calls[end[1]], names = names, []
        elif f"{tmp_path}/objects" in line:
            names.append(re.search(r"\d+ +(\w+)\(", line)[1])
    assert calls["put"] == ["openat", "rename"] * 10
    assert calls["get"] == ["openat"] * 10
    assert len(calls["exists"]) == 10
    assert len(calls["evict"]) == 10


def test_a_full_disk_leaves_nothing_and_says_how_much_is_missing(tmp_path, small_disk):
    connector = FileConnector(small_disk, clear=False)
    with pytest.raises(StorageFullError) as caught:
        connector.put(bytes(2 << 20))
    assert caught.value.needed == 2 << 20
    assert caught.value.free < 2 << 20
    assert caught.value.path == str(small_disk)
    assert str(caught.value.needed) in str(caught.value)
    assert os.listdir(small_disk) == []
    connector.evict(connector.put(b"small still fits"))
    connector.close()  # so that the directory is open no more
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), OSError)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB where this user may mount one; else a limit on file size."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs to be root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_close_deletes_only_objects(tmp_path):
    # compat.md, row 4: the whole tree went, whatever was in it
    store = tmp_path / "store"
    connector = FileConnector(store)
    connector.put(b"x")
    (store / "thesis.tex").write_text("not ours")
    connector.close()
    assert os.listdir(store) == ["thesis.tex"]


def test_a_disowned_connector_deletes_nothing_unless_told_to(tmp_path):
    creator = FileConnector(tmp_path / "store")
    key = creator.put(b"x")
    guest = FileConnector(**creator.config())
    guest.disown()
    guest.close()
    assert creator.exists(key)
    guest.close(clear=True)
    assert not creator.exists(key)


def _close(connector):
    connector.close()


def test_a_forked_child_deletes_nothing(tmp_path):
    connector = FileConnector(tmp_path / "store")
    key = connector.put(b"x")
    child = multiprocessing.get_context("fork").Process(target=_close, args=(connector,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert connector.exists(key)


def test_a_killed_writer_leaves_no_object(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        from proxystore.connectors import file
        real = os.writev
        def writev(fd, parts):
            real(fd, [parts[0][:100]])
            os.kill(os.getpid(), signal.SIGKILL)
        os.writev = writev
        file.FileConnector(sys.argv[1]).put(bytes(1000))
        """
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "store")], check=False)
    connector = FileConnector(tmp_path / "store")
    left = os.listdir(tmp_path / "store")
    assert len(left) == 1, "the killed writer's file is there"
    assert not list(connector.keys()), "and is no object"
    connector.close()
    assert not (tmp_path / "store").exists(), "and is cleared like one"


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away needs to be root")
def test_a_directory_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "theirs"
    path.mkdir()
    os.chown(path, 12345, 12345)
    with pytest.raises(StoreDirectoryError, match="belongs to user 12345") as caught:
        FileConnector(path)
    assert caught.value.path == str(path)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreDirectoryError, match=r"Not a directory|exists"):
        FileConnector(tmp_path / "file" / "store")


def test_a_directory_that_vanishes_while_it_is_opened_is_made_again(tmp_path, monkeypatch):
    real, looks = os.access, []

    def access(path, mode):
        if not looks:
            os.rmdir(path)  # as who closes another connector there does
        looks.append(path)
        return real(path, mode)

    monkeypatch.setattr(file_module.os, "access", access)
    connector = FileConnector(tmp_path / "store")
    assert connector.exists(connector.put(b"x"))


def test_new_directories_are_private(tmp_path):
    FileConnector(tmp_path / "store")
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_all_may_write_to_is_warned_about(tmp_path, caplog):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    FileConnector(tmp_path / "open")
    assert "any user may write" in caplog.text


@pytest.mark.parametrize("name", ["../escape", "a/b"])
def test_keys_cannot_name_files_elsewhere(tmp_path, name):
    connector = FileConnector(tmp_path / "store")
    for method in (connector.get, connector.evict, connector.exists):
        with pytest.raises(ValueError, match="outside"):
            method(FileKey(name))


def test_more_buffers_than_one_call_takes_and_short_writes(tmp_path, monkeypatch):
    real = os.writev
    monkeypatch.setattr(file_module.os, "writev", lambda fd, parts: real(fd, [parts[0][:7]]))
    connector = FileConnector(tmp_path)
    parts = [bytes([i % 256]) * (i % 20) for i in range(100)]
    assert bytes(connector.get(connector.put_buffers(parts))) == b"".join(parts)


def test_other_errors_of_writing_are_not_called_a_full_disk(tmp_path, monkeypatch):
    def fail(fd, parts):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(file_module.os, "writev", fail)
    with pytest.raises(OSError, match="broken"):
        FileConnector(tmp_path).put(b"x")
    assert os.listdir(tmp_path) == []


def test_file_systems_are_told_apart():
    assert file_module._file_system("/proc/self") == "proc"
    assert file_module._file_system("/dev/shm") == "tmpfs"
    assert "nfs4" in file_module._NETWORK_FILE_SYSTEMS
