"""FileConnector beyond the contract: whole files, private mappings, nobody else's data."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
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


def test_a_full_disk_leaves_nothing_and_says_how_much_is_missing(tmp_path, small_disk):
    connector = FileConnector(small_disk)
    with pytest.raises(StorageFullError) as caught:
        connector.put(bytes(2 << 20))
    assert caught.value.needed == 2 << 20
    assert caught.value.free < 2 << 20
    assert caught.value.path == str(small_disk)
    assert str(caught.value.needed) in str(caught.value)
    assert os.listdir(small_disk) == []
    connector.evict(connector.put(b"small still fits"))
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
    # defects.md 4: the whole tree went, whatever was in it
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
