"""FileConnector beyond the contract: whole files, private mappings, nobody else's data."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading

import numpy as np
import pytest

from proxystore.connectors import file as file_module
from proxystore.connectors.exceptions import (
    StorageFullError,
    StoreDirectoryError,
    UnexpectedFileError,
)
from proxystore.connectors.file import DirectoryKeeper, FileConnector, FileKey
from proxystore.proxy import Proxy
from proxystore.serialize import frames
from proxystore.store import Store
from proxystore.testing import check_connector

LARGE = 5_000_000


class Unresolvable:
    """Makes no target: who resolves the proxy gets another error than the test waits for."""

    def __call__(self):
        raise AssertionError("it was resolved")


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


MANY = """
import os, resource, subprocess, sys
import numpy as np
from proxystore.connectors.file import FileConnector
from proxystore.store import Store

in_use = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
with Store("many", FileConnector(sys.argv[1]), cache_size=0) as store:
    keys = store.put_batch([np.full(9000, i) for i in range(1000)])
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(in_use)]
    arrays = store.get_batch(keys)
    arrays += [store.get(key) for key in keys]
    assert [array[-1] for array in arrays] == [*range(1000)] * 2
    arrays[0][0] = arrays[-1][0] = -1  # they can be written to, each by itself
    assert store.get(keys[0])[0] == 0 and store.get(keys[-1])[0] == 999
    for fd in held:
        os.close(fd)
    mapped = len(set(line.split()[-1] for line in open("/proc/self/maps") if sys.argv[1] in line))
    assert subprocess.run(["true"]).returncode == 0
    del arrays
    one = store.get(keys[500])
    assert keys[500].filename in open("/proc/self/maps").read(), "mapped again when there is room"
    print(mapped)
"""


@pytest.mark.parametrize(("in_use", "fewest", "most"), [(0, 100, 128), (240, 1, 16)])
def test_more_objects_can_be_had_than_files_opened(tmp_path, in_use, fewest, most):
    run = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path / "objects"), str(in_use)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    if file_module._TRACKS_FILES:
        assert fewest <= int(run.stdout) <= most


def test_where_no_more_can_be_mapped_objects_are_read(tmp_path, monkeypatch):
    connector = FileConnector(tmp_path, mmap=True)
    key = connector.put(b"x" * LARGE)

    def mmap(*args, **options):
        raise OSError(errno.ENOMEM, "no more mappings")

    monkeypatch.setattr(file_module.mmap, "mmap", mmap)
    data = connector.get(key)
    data[0] = 0
    assert bytes(data[1:]) == b"x" * (LARGE - 1)
    assert connector.get(key)[0] == ord("x")


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


@pytest.mark.parametrize("small_disk", ["size=1m", "nr_inodes=10"], indirect=True)
def test_on_a_full_disk_a_claim_says_that_it_is_the_claim(small_disk):
    connector = FileConnector(small_disk, clear=False)
    key = connector.put(b"x")
    with pytest.raises(StorageFullError, match="the object needs"):
        fill(connector)
    with pytest.raises(StorageFullError, match="for a claim on an object: it needs") as caught:
        connector.claim(key, "me" * 50, 60)
    assert 100 <= caught.value.needed < 150
    assert caught.value.what == "claim"
    assert "acknowledged, here or elsewhere" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert not [name for name in os.listdir(small_disk) if "claim" in name]
    connector.close()


def fill(connector):
    for _ in range(1000):
        connector.put(bytes(4096))


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of 1 MiB, or what the parameter says, where this user may mount one."""
    path = tmp_path / "small"
    path.mkdir()
    options = getattr(request, "param", "size=1m")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"{options},mode=700", "tmpfs", str(path)],
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs to be root")
    yield path
    # Lazily: after a test that has failed, its connector may still have the directory open.
    subprocess.run(["umount", "--lazy", str(path)], check=True)


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


ANOTHER = """
import sys
from proxystore.connectors.file import FileConnector
connector = FileConnector(sys.argv[1])
print("open", flush=True)
for line in sys.stdin:
    connector.close()
    print("closed", flush=True)
"""


class Another:
    """Another process that has the directory open."""

    def __init__(self, directory):
        self.process = subprocess.Popen(
            [sys.executable, "-c", ANOTHER, directory],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
        )
        assert self.process.stdout.readline() == "open\n"

    def close(self):
        self.process.stdin.write("close\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "closed\n"

    def end(self):
        self.process.communicate(timeout=30)


@pytest.fixture
def another(tmp_path):
    process = Another(tmp_path / "store")
    yield process
    process.end()


def test_the_last_process_to_close_clears_and_no_other(tmp_path):
    first = FileConnector(tmp_path / "store")
    another = Another(first.store_dir)
    key = first.put(b"x")
    first.close()
    first.close()  # and again: it is none the later
    assert first.exists(key), "another process uses it"
    another.close()
    assert not os.path.exists(first.store_dir)
    another.end()


def test_it_does_not_matter_who_opened_the_directory_first(tmp_path, another):
    last = FileConnector(tmp_path / "store")
    key = last.put(b"x")
    another.close()
    another.close()
    assert last.exists(key)
    last.close()
    assert not os.path.exists(last.store_dir)


def test_a_process_that_was_killed_has_nothing_open(tmp_path, another):
    connector = FileConnector(tmp_path / "store")
    another.process.kill()
    another.process.wait()
    connector.close()
    assert not os.path.exists(connector.store_dir)


def test_a_process_counts_as_long_as_one_of_its_connectors_is_open(tmp_path, another):
    one, two = (FileConnector(tmp_path / "store") for _ in range(2))
    key = one.put(b"x")
    one.close()
    another.close()
    assert two.exists(key), "it is open here"
    two.close()
    assert not os.path.exists(two.store_dir)


def test_told_to_clear_it_does_whoever_has_the_directory_open(tmp_path, another):
    connector = FileConnector(tmp_path / "store")
    key = connector.put(b"x")
    connector.close(clear=True)
    assert not connector.exists(key)


def test_a_guest_holds_nobody_up(tmp_path, another):
    guest = FileConnector(tmp_path / "store")
    guest.disown()
    another.close()
    assert not os.path.exists(guest.store_dir)


@pytest.fixture
def kept(tmp_path):
    """A connector, the key of an object, and the keeper that the connector will leave it to."""
    connector = FileConnector(tmp_path / "store")
    key = connector.put(b"x")
    keeper = DirectoryKeeper(connector)
    connector.leave_to(keeper.name)
    return connector, key, keeper


def test_what_is_kept_goes_when_it_is_not_kept_any_more(kept):
    connector, key, keeper = kept
    connector.close()
    connector.close()
    assert connector.exists(key)
    keeper.release()
    assert not os.path.exists(connector.store_dir)


def test_what_is_kept_no_more_goes_on_close(kept):
    connector, key, keeper = kept
    keeper.release()
    assert os.listdir(connector.store_dir) == [key.filename], "nobody has closed it"
    connector.close()
    assert not os.path.exists(connector.store_dir)


def test_what_is_kept_goes_if_told_to(tmp_path):
    connector = FileConnector(tmp_path / "store")
    keeper = DirectoryKeeper(connector)
    connector.leave_to(keeper.name)
    connector.close(clear=True)
    assert not os.path.exists(connector.store_dir)
    keeper.release()
    assert not os.path.exists(connector.store_dir)


def test_of_several_keepers_the_last_one_clears(tmp_path):
    connectors = [FileConnector(tmp_path / "store") for _ in range(2)]
    first, last = DirectoryKeeper(connectors[0]), DirectoryKeeper(connectors[0])
    connectors[0].leave_to(first.name)
    connectors[0].leave_to(last.name)
    connectors[0].close()
    first.release()
    assert os.path.exists(connectors[0].store_dir)
    last.keep()  # also beyond the second close
    connectors[1].leave_to(last.name)
    connectors[1].close()
    last.release()
    assert not os.path.exists(connectors[0].store_dir)


def test_a_keeper_leaves_it_to_who_has_the_directory_open(tmp_path, another):
    connectors = [FileConnector(tmp_path / "store") for _ in range(2)]
    key = connectors[0].put(b"x")
    for left, connector in enumerate(connectors):
        keeper = DirectoryKeeper(connector)
        connector.leave_to(keeper.name)
        connector.close()
        keeper.release()
        assert connector.exists(key), "it is open in another process" if left else "it is open here"
    another.close()
    assert not os.path.exists(connectors[0].store_dir)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_of_several_that_close_at_once_one_clears(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)

    def open_and_close():
        for i in range(25):
            connector = FileConnector(tmp_path / str(i))
            connector.put(b"x")
            barrier.wait(30)
            connector.close()

    processes = [context.Process(target=open_and_close) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert os.listdir(tmp_path) == []


def test_who_opens_a_directory_that_is_being_cleared_waits_and_makes_it_anew(tmp_path):
    directory = tmp_path / "store"
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)  # as another process does meanwhile
    found = []

    def use():
        connector = FileConnector(directory)
        found.append(connector.get(connector.put(b"x")))
        connector.close()

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    directory.rmdir()
    os.close(fd)
    thread.join(30)
    assert found == [b"x"]


ORPHANED = """
import os, signal, sys
from proxystore.connectors.file import FileConnector
connector = FileConnector(sys.argv[1])
if os.fork():
    os.kill(os.getpid(), signal.SIGKILL)
print("here", flush=True)
sys.stdin.read()
"""


def test_a_forked_child_keeps_nothing_open_when_its_parent_is_killed(tmp_path):
    command = [sys.executable, "-c", ORPHANED, tmp_path / "store"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"here\n"
        parent.wait()
        FileConnector(tmp_path / "store").close()
        assert not os.path.exists(tmp_path / "store")


@pytest.mark.parametrize("refused", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_where_there_are_no_such_locks_who_made_a_connector_clears(tmp_path, monkeypatch, refused):
    real = fcntl.flock

    def flock(fd, operation):
        if operation & refused:
            raise OSError(errno.EBADF, "as of NFS")
        real(fd, operation)

    monkeypatch.setattr(file_module.fcntl, "flock", flock)
    with FileConnector(tmp_path / "store") as connector:
        connector.put(b"x")
    assert not os.path.exists(connector.store_dir)


def test_where_there_are_no_such_locks_a_keeper_leaves_what_others_may_use(kept, monkeypatch):
    def flock(fd, operation):
        if operation & fcntl.LOCK_EX:
            raise OSError(errno.EBADF, "as of NFS")

    connector, key, keeper = kept
    connector.close()
    monkeypatch.setattr(file_module.fcntl, "flock", flock)
    keeper.release()
    assert connector.exists(key)
    connector.close(clear=True)


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


@pytest.mark.parametrize("name", ["stat", "open"])
def test_a_directory_that_vanishes_while_it_is_opened_is_made_again(tmp_path, monkeypatch, name):
    real, looks = getattr(os, name), []

    def look(path, *args, **options):
        if path == str(tmp_path / "store") and os.path.lexists(path):
            looks.append(path)
            if len(looks) == 1:
                os.rmdir(path)  # as who closes another connector there does
        return real(path, *args, **options)

    monkeypatch.setattr(file_module.os, name, look)
    connector = FileConnector(tmp_path / "store")
    assert connector.exists(connector.put(b"x"))
    assert looks


# -- directories of all kinds


@pytest.mark.parametrize("empty", ["", b""])
def test_no_directory_is_refused(empty):
    with pytest.raises(ValueError, match=r"store_dir is empty .*not set"):
        FileConnector(empty)


def test_the_users_home_and_bytes_are_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/store", b"~/store", os.fsencode(tmp_path / "store")):
        with FileConnector(path) as connector:
            assert connector.store_dir == str(tmp_path / "store")
            assert connector.exists(connector.put(b"x"))


READ_ONLY = """
import os, sys
from proxystore.connectors.exceptions import StoreDirectoryError
from proxystore.connectors.file import FileConnector, FileKey
user = int(sys.argv[3])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
with FileConnector(sys.argv[1]) as connector:
    key = FileKey(sys.argv[2])
    assert connector.get(key) == b"x" and connector.exists(key) and list(connector.keys()) == [key]
    try:
        connector.put(b"y")
    except StoreDirectoryError as error:
        assert "it cannot be written to (" in str(error), error
    else:
        raise AssertionError("it could")
assert connector.exists(key), "what cannot be deleted stays, and is no error"
try:
    FileConnector(sys.argv[1] + "/none/here")
except StoreDirectoryError:
    pass
else:
    raise AssertionError("it could be made")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="being another user needs to be root")
@pytest.mark.parametrize("how", ["mode", "root's", "mount"])
def test_a_directory_that_cannot_be_written_to_can_be_read(how):
    directory = tempfile.mkdtemp(dir="/tmp")  # which all may enter
    connector = FileConnector(directory, clear=False)
    key = connector.put(b"x")
    connector.close()
    os.chmod(f"{directory}/{key.filename}", 0o444)
    user = 12345
    if how == "mode":
        os.chown(directory, user, user)
        os.chown(f"{directory}/{key.filename}", user, user)
        os.chmod(directory, 0o555)
    elif how == "root's":
        os.chmod(directory, 0o755)
    else:
        user = 0
        for options in (["--bind", directory], ["-o", "remount,bind,ro"]):
            done = subprocess.run(["mount", *options, directory], capture_output=True)
            if done.returncode:
                pytest.skip("mounting needs more than to be root")
    try:
        run = subprocess.run(
            [sys.executable, "-c", READ_ONLY, directory, key.filename, str(user)],
            check=False,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
    finally:
        if how == "mount":
            subprocess.run(["umount", directory], check=True)
        shutil.rmtree(directory)


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


@pytest.mark.parametrize("key", ["a-name", None, 5, b"x", ["a"], (), (5,), "a proxy"])
def test_what_is_no_key_is_refused_and_not_looked_into(tmp_path, key):
    if key == "a proxy":  # not among the parameters: pytest would resolve it
        key = Proxy(Unresolvable())
    connector = FileConnector(tmp_path)
    uses = [connector.get, connector.exists, connector.evict]
    uses += [lambda key: connector.peek(key, 1), lambda key: connector.set(key, b"")]
    uses += [lambda key: connector.wait(key, 0), lambda key: connector.claim(key, "me", 1)]
    uses += [lambda key: connector.release(key, "me"), lambda key: connector.get_batch([key])]
    for use in uses:
        with pytest.raises(TypeError, match=r"such as FileKey\(filename=...\).* got ") as caught:
            use(key)
    assert ("get_key" in str(caught.value)) is (type(key) is Proxy)


def test_names_that_no_file_has_are_refused(tmp_path):
    connector = FileConnector(tmp_path)
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") - 38  # as much stands before it at times
    key = FileKey("ß" * (longest // 2))
    connector.set(key, b"x")
    assert connector.get(key) == b"x"
    for name in ("", "x" * (longest + 1), "ß" * (longest // 2 + 1)):
        for use in (connector.get, connector.exists, connector.evict):
            with pytest.raises(ValueError, match=r"names no file|give a shorter one"):
                use(FileKey(name))
        with pytest.raises(ValueError, match=r"names no file|give a shorter one"):
            connector.set(FileKey(name), b"x")


@pytest.mark.parametrize("kind", ["pipe", "link", "directory", "socket"])
def test_what_is_no_regular_file_is_no_object(tmp_path, kind):
    connector = FileConnector(tmp_path)
    key, other = connector.new_key(), connector.put(b"x")
    path = tmp_path / key.filename
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(other.filename)
        elif kind == "directory":
            path.mkdir()
        else:
            server.bind(str(path))
    for use in (connector.get, lambda key: connector.peek(key, 1)):
        with pytest.raises(UnexpectedFileError, match=f"it is a .*{kind}") as caught:
            use(key)
        assert caught.value.path == str(path)


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path):
    directory = tmp_path / "objects"
    connector = FileConnector(directory, clear=False)
    key = connector.put(b"x")
    (directory / key.filename).unlink()
    directory.rmdir()
    directory.touch()
    for use in (connector.get, lambda key: connector.peek(key, 1)):
        with pytest.raises(StoreDirectoryError, match="not a directory any more") as caught:
            use(key)
        assert caught.value.path == str(directory)


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
