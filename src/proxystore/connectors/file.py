"""Objects as files in one directory: /dev/shm, a local disk or a parallel file system.

The rules that keep it right without a lock, between processes and nodes:

- One file an object. It is written under a hidden name and renamed, so that under
  its own name it is always whole.
- Nothing is changed in place: replacing an object is another rename. Whoever has the
  old file open or mapped keeps the old bytes.
- A missing file is a missing object, at whatever moment it is found missing.
- A claim is a hidden file beside the object: who has it, until when. It is read and written
  under a lock on it, and counts while it has its name. Who removes an object does so before
  its claim; who claims looks for the object after writing. So none outlives its object.
- What is deleted on close is only what has the name of an object of ours.
- Who keeps the objects beyond the close of who has stored them has a hidden file, too
  (`DirectoryKeeper`). The close renames it; if it is gone by then, the close deletes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import resource
import stat
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic, sleep, time
from typing import Any, Literal, NamedTuple

from proxystore.connectors._base import (
    OBJECT_NAME,
    ConnectorMixin,
    check_claim,
    checked_name,
    new_name,
    wrong_key,
)
from proxystore.connectors.exceptions import (
    ForeignObjectError,
    NoFileLocksError,
    StorageFullError,
    StoreDirectoryError,
    StoreDirectoryGoneError,
    UnexpectedFileError,
    free_bytes,
)
from proxystore.serialize import BytesLike

logger = logging.getLogger(__name__)

# Below, one read is quicker than setting up and tearing down a mapping (measured:
# 1 kB 4 us read, 9 us mapped; equal at about 100 kB).
_MAP_FROM = 64 * 1024

# Most buffers one writev takes (IOV_MAX on Linux).
_MOST_BUFFERS = 1024

# Where a mapped page is fetched over the network on first touch, and lost to SIGBUS
# when the server is: read such files whole instead.
_NETWORK_FILE_SYSTEMS = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "daos", "fuse", "glusterfs", "gpfs", "lustre"),
    *("ncpfs", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs"),
}

# First and longest time between two looks of `wait`, in seconds. A look costs 2 us here;
# on a network it costs a server that all nodes share, so it is a longer wait that makes
# it worth while.
_PAUSES = (0.001, 0.05)
_PAUSES_ON_NETWORK = (0.02, 1.0)

# A mapping takes one of the process's file descriptors, since Python keeps a duplicate of the
# file's (until 3.13, where it can be told not to), and one of its mappings, of which Linux lets
# a process have 65,530. Half of either is left to others: what is more is read.
_TRACKS_FILES = sys.version_info < (3, 13)
_MOST_MAPPINGS = 32_000
_FEW_MAPPINGS = 64  # with fewer it is not worth while to ask for the limit
_mappings: set[weakref.ref[mmap.mmap]] = set()

# A name that is not longer surely fits, in whatever characters.
_SHORT_NAME = 63
# What `set` puts before a name until the object is whole.
_ASIDE = len(f".{new_name()}.")

# Not what a link leads to; and to open a pipe would wait for a writer.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

# Directories where claims are to be expected: where this process has made one, or was told
# that others will. Elsewhere `evict` does not look for the file of a claim, since that would
# make each eviction half as slow again (measured: 11 us and 5.5 us; on a network, a second
# question to the server). Should another process have claimed the object all the same, the
# file is removed when that process says what has become of it; if it was killed, by whoever
# claims the object next, or by `close`.
_claimed: set[str] = set()


class FileKey(NamedTuple):
    """Key of an object in a `FileConnector`: the name of its file in the directory."""

    filename: str


class FileConnector(ConnectorMixin[FileKey]):
    """Keeps each object in a file of its own.

    Thread-safe, and safe between processes and between nodes that share the file
    system: it has no state but the directory.

    `get` returns `bytes` for small objects. Large ones come back as a private,
    writable mapping of the file (`memoryview`): no byte is read before it is used,
    writing to it never changes the file, and it outlives eviction.

    Args:
        store_dir: The directory; made, with its parents and mode 0700, if missing. A ``~``
            at its beginning is the user's home. One that cannot be written to can be read.
        clear: Whether `close` deletes the objects and the directory. Only in the
            process that made this instance, if no other has the directory open any more
            (where the file system can tell: not on NFS): the last one out clears. If a Dask
            scheduler says that tasks still need objects, it clears when they do not. Never
            in one that was rebuilt for a proxy (see `disown`): a worker must not delete
            what others still use, and nobody waits for it.
        buffering: Kept and ignored. Files are written with one system call.
        mmap: ``"auto"``: map large files unless the file system is on a network.
            True or False: always or never. Some 32,000 at a time are mapped, or as many as
            half of the open files that the process may have (``ulimit -n``; not from
            Python 3.13 on); what is more is read.

    Raises:
        ValueError: `store_dir` is empty.
        StoreDirectoryError: The directory cannot be made, or belongs to another user.
    """

    thread_safe = True

    def __init__(
        self,
        store_dir: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        clear: bool = True,
        buffering: int = -1,
        mmap: Literal["auto"] | bool = "auto",
    ) -> None:
        self.store_dir = _absolute(store_dir)
        self.clear = clear
        self.buffering = buffering
        self.mmap = mmap
        self._maps: bool | None = None if mmap == "auto" else bool(mmap)
        self._on_network: bool | None = None  # found out when it matters
        self._made_directory, self._opening = _open_directory(self.store_dir)
        self._creator_pid: int | None = os.getpid()
        self._keepers: set[str] = set()

    def __repr__(self) -> str:
        return f"FileConnector(directory={self.store_dir})"

    def config(self) -> dict[str, Any]:
        """Return the keyword arguments that rebuild this connector."""
        config = {"store_dir": self.store_dir, "clear": self.clear, "buffering": self.buffering}
        if self.mmap != "auto":
            config["mmap"] = self.mmap
        return config

    @property
    def maps_from(self) -> int | None:
        """Length in bytes from which on `get` maps a file; None: it never does."""
        if self._maps is None:
            self._maps = not self._is_on_network()
        return _MAP_FROM if self._maps else None

    def _is_on_network(self) -> bool:
        if self._on_network is None:
            self._on_network = _file_system(self.store_dir) in _NETWORK_FILE_SYSTEMS
        return self._on_network

    def disown(self) -> None:
        """Leave deleting to somebody else: `close` deletes only if told to in the call."""
        self._creator_pid = self._opening = None

    def abandon(self) -> None:
        """Close as if it had never been opened: if that has made the directory, it goes again."""
        if self._made_directory:
            with contextlib.suppress(OSError):  # not empty, or gone
                os.rmdir(self.store_dir)

    @property
    def clears(self) -> bool:
        """Whether `close` deletes if nobody else has the directory open."""
        return self.clear and self._creator_pid == os.getpid()

    def leave_to(self, keeper: str) -> None:
        """Have `close` leave deleting to a `DirectoryKeeper` of that name, if it is there then."""
        self._keepers.add(keeper)

    def close(self, clear: bool | None = None) -> None:
        """Delete the objects and then the directory, if that is asked for.

        Files that are no objects of ours stay, and then so does the directory.

        Args:
            clear: None: as the constructor was told, and only in its process, if no other
                has the directory open, and nobody keeps the objects. True: whoever does.
        """
        opening, self._opening = self._opening, None
        if clear is None:
            # Every keeper has to hear of it.
            kept = [self._tell(keeper) for keeper in self._keepers] if self.clears else []
            clear = self.clears and not any(kept)
            if clear:
                # A second call is not the last one out because it was the last before.
                opening = opening or _open(self.store_dir)
                clear = opening is None or opening.keep_others_out()
        try:
            if clear:
                self._clear()
        finally:
            if opening is not None:
                place = opening.place
                del opening  # who waits to be alone must not find us
                _let_others_in(place)

    def _tell(self, keeper: str) -> bool:
        """Say to a keeper that it is to delete; return whether it will."""
        keeps, closed = _files_of(self.store_dir, keeper)
        try:
            os.rename(keeps, closed)
        except FileNotFoundError:
            return os.path.exists(closed)  # it has heard
        return True

    def _clear(self) -> None:
        with (
            contextlib.suppress(FileNotFoundError, PermissionError),
            os.scandir(self.store_dir) as entries,
        ):
            for entry in entries:
                if OBJECT_NAME.match(entry.name.removeprefix(".")):
                    try:
                        _unlink(entry.path)
                    except OSError as error:
                        if error.errno not in _NOT_WRITABLE:
                            raise
        with contextlib.suppress(OSError):  # not empty, or gone: not ours to remove
            os.rmdir(self.store_dir)

    # -- one object

    def new_key(self, obj: bytes | None = None) -> FileKey:
        """Return a key with no object behind it yet; `obj` is not looked at."""
        return FileKey(new_name())

    def named_key(self, name: str) -> FileKey:
        """Return the key for a name of the form ``UUID4`` or ``UUID4.suffix``."""
        return FileKey(checked_name(name))

    def put(self, obj: BytesLike) -> FileKey:
        """Store data under a new key and return it.

        Raises:
            StorageFullError: No room; nothing is left behind.
            StoreDirectoryGoneError: The directory was removed; a `FileNotFoundError`.
            StoreDirectoryError: It cannot be written to.
        """
        return self.put_buffers((obj,))

    def put_buffers(self, parts: Sequence[BytesLike]) -> FileKey:
        """Store the concatenation of `parts`, without joining them; raises as `put`."""
        key = self.new_key()
        self._write(self._path(key), f".{key.filename}", parts)
        return key

    def set(self, key: FileKey, obj: BytesLike) -> None:
        """Put an object behind a key, replacing what was there at once; raises as `put`."""
        self.set_buffers(key, (obj,))

    def set_buffers(self, key: FileKey, parts: Sequence[BytesLike]) -> None:
        """Put the concatenation of `parts` behind `key`; raises as `put`."""
        # Two writers of one key must not share the file they prepare.
        self._write(self._path(key), f".{new_name()}.{key[0]}", parts)

    def get(self, key: FileKey) -> BytesLike | None:
        """Return the data, or None if there is no such key.

        Raises:
            ForeignObjectError: Another user, who is not root either, has put it there.
            UnexpectedFileError: What has its name is a directory, a pipe or the like.
            TypeError: `key` is no key, as everywhere here.
            ValueError: `key` cannot be the name of a file, as everywhere here.
        """
        try:
            fd = os.open(self._path(key), _READ)
        except OSError as error:
            self._check_missing(key, error)
            return None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise self._unexpected(key, found)
            if found.st_uid != os.geteuid() and found.st_uid != 0:
                # What is stored is unpickled: its author can have any code run here.
                raise ForeignObjectError(self._path(key), found.st_uid)
            size = found.st_size
            if size < _MAP_FROM:
                return _read(fd, size)
            return (_map(fd, size) if self.maps_from else None) or _read_into(fd, size)
        finally:
            os.close(fd)

    def peek(self, key: FileKey, length: int) -> tuple[BytesLike, int] | None:
        """Return the first `length` bytes of the data (or all, if less) and their whole length.

        None if there is no such key.
        """
        try:
            fd = os.open(self._path(key), _READ)
        except OSError as error:
            self._check_missing(key, error)
            return None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise self._unexpected(key, found)
            size = found.st_size
            return _read(fd, min(size, length)), size
        finally:
            os.close(fd)

    def _check_missing(self, key: FileKey, error: OSError) -> None:
        """Return if there is no such object, else raise what keeps it from being opened."""
        if isinstance(error, FileNotFoundError):
            return
        if error.errno == errno.ELOOP:
            raise UnexpectedFileError(self._path(key), "a symbolic link") from error
        if error.errno == errno.ENXIO:
            raise UnexpectedFileError(self._path(key), "a socket or device") from error
        if error.errno == errno.ENOTDIR:
            raise StoreDirectoryError(self.store_dir, "it is not a directory any more") from error
        raise error

    def _unexpected(self, key: FileKey, found: os.stat_result) -> UnexpectedFileError:
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        return UnexpectedFileError(self._path(key), kind)

    def exists(self, key: FileKey) -> bool:
        """Say whether there is an object under `key`."""
        return os.path.exists(self._path(key))

    def evict(self, key: FileKey) -> None:
        """Remove the object; that it is not there is no error."""
        path = self._path(key)
        _unlink(path)
        if self.store_dir in _claimed:
            _unlink(_claim_of(path))

    def wait(self, key: FileKey, timeout: float) -> bool:
        """Return True once there is an object under `key`, False if none comes.

        Looks again and again, ever more seldom: inotify does not see what other nodes do.

        Args:
            key: Of an object that any process may set.
            timeout: Longest wait, in seconds; 0: only look.
        """
        end = monotonic() + timeout
        pause, longest = _PAUSES_ON_NETWORK if self._is_on_network() else _PAUSES
        while not self.exists(key):
            left = end - monotonic()
            if left <= 0:
                return False
            sleep(min(pause, left))
            pause = min(2 * pause, longest)
        return True

    def keys(self, prefix: str = "") -> Iterator[FileKey]:
        """Yield the key of each stored object whose name starts with `prefix`."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.store_dir) as entries:
            for entry in entries:
                if entry.name.startswith(prefix) and OBJECT_NAME.match(entry.name):
                    yield FileKey(entry.name)

    def unfinished(self, prefix: str) -> dict[str, FileKey]:
        """Return what has been begun of objects whose names start with `prefix`.

        The keys that they are to have, by the files of what is there of them. Some are being
        written at this moment; what killed processes have begun stays as it is.
        """
        with contextlib.suppress(FileNotFoundError), os.scandir(self.store_dir) as entries:
            return {
                entry.path: FileKey(entry.name[_ASIDE:])
                for entry in entries
                # As `set_buffers` names them.
                if entry.name[_ASIDE:].startswith(prefix) and OBJECT_NAME.match(entry.name[1:])
            }
        return {}

    def remove_unfinished(self, paths: Iterable[str]) -> None:
        """Remove files that `unfinished` has named.

        For whoever knows that no process is writing them: its `set` would then fail.
        """
        for path in paths:
            _unlink(path)

    # -- claiming

    def expect_claims(self) -> None:
        """Be ready for claims that other processes make."""
        _claimed.add(self.store_dir)

    def claim(self, key: FileKey, claimant: str, seconds: float) -> str:
        """Try to claim the object for a time, and return who has it now.

        See `proxystore.connectors.protocols.ClaimableConnector`. When the time is up, is told
        by the clock of the host that made the claim, and read by those of others: where they
        differ, a claim seems longer or shorter by as much. There is no claim on what does not
        exist.

        Raises:
            ValueError: `seconds` is not more than 0.
            NoFileLocksError: The file system has no locks.
            StorageFullError: No room for the claim.
        """
        check_claim(seconds)
        path = self._path(key)
        claim = _claim_of(path)
        self.expect_claims()
        while True:
            is_there = os.path.exists(path)
            try:
                flags = os.O_CREAT if is_there else 0
                with self._locked(claim, flags, len(claimant.encode())) as fd:
                    if fd is None:
                        continue
                    if is_there:
                        has, until = _read_claim(fd)
                        now = time()
                        if has is not None and has != claimant and now < until:
                            return has
                        self._write_claim(fd, claim, f"{now + seconds!r} {claimant}\n")
                    if not os.path.exists(path):
                        _unlink(claim)
                    elif not is_there:
                        continue
                    return claimant
            except FileNotFoundError:  # there is no claim on what is not there, or no directory
                return claimant

    def release(self, key: FileKey, claimant: str) -> None:
        """End the claim of `claimant`; if somebody else has the object, do nothing.

        Raises:
            NoFileLocksError: The file system has no locks.
        """
        path = _claim_of(self._path(key))
        while True:
            try:
                with self._locked(path) as fd:
                    if fd is None:
                        continue
                    if _read_claim(fd)[0] == claimant:
                        _unlink(path)
                    return
            except FileNotFoundError:
                return

    @contextlib.contextmanager
    def _locked(self, path: str, flags: int = 0, size: int = 0) -> Iterator[int | None]:
        """Open and lock the file of a claim; None if it has lost its name before that."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        except OSError as error:
            if error.errno in _FULL:  # there is not even room for its name
                raise StorageFullError(
                    self.store_dir, size, free_bytes(self.store_dir), "claim"
                ) from error
            raise
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    if flags & os.O_CREAT:
                        _unlink(path)
                    raise NoFileLocksError(self.store_dir, os.strerror(error.errno)) from error
                raise
            try:
                yield fd if _has_name(fd, path) else None
            finally:
                # Closing does not end it where a child has been forked meanwhile.
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    def _write_claim(self, fd: int, path: str, text: str) -> None:
        data = text.encode()
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, data, 0)
        except OSError as error:
            _unlink(path)
            if error.errno in _FULL:
                raise StorageFullError(
                    self.store_dir, len(data), free_bytes(self.store_dir), "claim"
                ) from error
            raise

    # -- files

    def _path(self, key: FileKey) -> str:
        # By its class alone: what a proxy's target is, would resolve it.
        if type(key) is not FileKey and not issubclass(type(key), tuple):
            raise wrong_key(key, FileKey)
        filename = key[0] if key else None
        if not isinstance(filename, str):
            raise wrong_key(key, FileKey)
        if not 0 < len(filename) <= _SHORT_NAME or "/" in filename:
            self._check_name(key)
        return f"{self.store_dir}/{filename}"

    def _check_name(self, key: FileKey) -> None:
        filename = key[0]
        if not filename:
            raise ValueError(f"the key {key!r} names no file; use keys as they were returned")
        if "/" in filename:
            raise ValueError(f"the key {key!r} names a file outside {self.store_dir!r}")
        try:
            longest = os.pathconf(self.store_dir, "PC_NAME_MAX") - _ASIDE
        except OSError:  # the directory is gone
            return
        length = len(os.fsencode(filename))
        if length > longest:
            raise ValueError(
                f"the key {key!r} is {length} bytes long, and names in {self.store_dir!r} can "
                f"be {longest}: give a shorter one"
            )

    def _write(self, target: str, aside: str, parts: Sequence[BytesLike]) -> None:
        path = f"{self.store_dir}/{aside}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as error:
            raise StoreDirectoryGoneError(
                self.store_dir, "the directory is gone (was the store closed?)"
            ) from error
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                raise StoreDirectoryError(
                    self.store_dir, f"it cannot be written to ({os.strerror(error.errno)})"
                ) from error
            if error.errno in _FULL:
                raise self._is_full(parts) from error
            raise
        try:
            try:
                _write_all(fd, parts)
            finally:
                os.close(fd)
            os.rename(path, target)
        except BaseException as error:
            _unlink(path)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise self._is_full(parts) from error
            raise

    def _is_full(self, parts: Sequence[BytesLike]) -> StorageFullError:
        needed = sum(memoryview(part).nbytes for part in parts)
        return StorageFullError(self.store_dir, needed, free_bytes(self.store_dir))


class DirectoryKeeper:
    """Keeps the objects in a directory when whoever has stored them closes their connector.

    They have to know its name before (`FileConnector.leave_to`). Where its process is killed, the
    directory stays.

    Attributes:
        name: A name of its own.
    """

    def __init__(self, connector: FileConnector) -> None:
        self.name = new_name()
        self._directory = connector.store_dir
        self.keep()

    def keep(self) -> None:
        """Keep them, also beyond the next close."""
        keeps, _ = _files_of(self._directory, self.name)
        os.close(os.open(keeps, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def pause(self) -> None:
        """Have whoever closes next clear. What has been left to this one stays."""
        _unlink(_files_of(self._directory, self.name)[0])

    def release(self) -> None:
        """Keep them no more: if they have been left to this one, and to no other, they go."""
        self.pause()
        _, closed = _files_of(self._directory, self.name)
        try:
            os.unlink(closed)
        except FileNotFoundError:
            return
        with contextlib.suppress(FileNotFoundError):  # told to clear, somebody has
            if any(name.endswith((_KEEPS, _CLOSED)) for name in os.listdir(self._directory)):
                return
            found = os.stat(self._directory)
            if (found.st_dev, found.st_ino) in _openings:  # it is open here
                return
            opening = _open(self._directory)
            if opening is not None and opening.keep_others_out(surely=True):
                del opening
                FileConnector(self._directory).close()
            else:
                # It is open elsewhere, or nobody can tell. What was needed has been evicted.
                with contextlib.suppress(OSError):  # not empty
                    os.rmdir(self._directory)


_KEEPS, _CLOSED = ".keeper", ".closed"


def _files_of(directory: str, keeper: str) -> tuple[str, str]:
    """Return the path of a keeper's file, before and after a connector was closed."""
    path = os.path.join(directory, f".{keeper}")
    return path + _KEEPS, path + _CLOSED


_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device"}


def _absolute(path: Any) -> str:
    name = os.fsdecode(path)
    if not name:
        raise ValueError(
            "store_dir is empty (from a variable that is not set?); name the directory to keep "
            "objects in, '.' for the current one"
        )
    return os.path.abspath(os.path.expanduser(name))


def _open_directory(path: str) -> tuple[bool, _Opening | None]:
    """Open the directory; return whether it was made, and what tells others that it is open."""
    for attempts_left in reversed(range(10)):
        is_new = not os.path.exists(path)
        try:
            _make_directories(path)
            found = os.stat(path)
        except OSError as error:
            # Who closes another store here may have removed it between two looks at it.
            vanished = isinstance(error, (FileExistsError, FileNotFoundError))
            if not (vanished and attempts_left):
                raise StoreDirectoryError(path, error.strerror or str(error)) from error
            continue
        _check_owner(path, found)
        opening = _open(path)
        if os.path.exists(path) if opening is None else opening.is_of(path):
            break
    return is_new, opening


def _check_owner(path: str, found: os.stat_result) -> None:
    # Whose directory it is may replace what is in it, and with its mode what others may.
    # A sticky directory of root's, as /tmp, is shared by design: there nobody can
    # replace another user's file. Nor can they where only root may write.
    mode = found.st_mode
    shared = found.st_uid == 0 and (mode & stat.S_ISVTX or not mode & (stat.S_IWGRP | stat.S_IWOTH))
    if found.st_uid != os.geteuid() and not shared:
        raise StoreDirectoryError(
            path, f"it belongs to user {found.st_uid}, this process is user {os.geteuid()}"
        )
    if not shared and mode & stat.S_IWOTH:
        logger.warning("any user may write to %r, and remove what is stored in it", path)


class _Opening:
    """Tells other processes that this one has a directory open; it ends with the object.

    By a shared lock on the directory itself: that leaves no file in it, and goes with its
    process.

    Attributes:
        pid: The process. A forked child inherits no opening.
        place: Device and inode of the directory.
    """

    def __init__(self, fd: int, place: tuple[int, int]) -> None:
        self.pid = os.getpid()
        self.place = place
        self._fd = fd
        weakref.finalize(self, _end_opening, fd, self.pid).atexit = False

    def keep_others_out(self, *, surely: bool = False) -> bool:
        """Return whether no other process has the directory open; if so, none can open it now.

        If there is one, this does not tell others any more that the directory is open.

        Args:
            surely: Whether a file system that cannot tell is a no.
        """
        for pause in _PAUSES_FOR_OTHERS:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:  # noqa: PERF203 - as often as it is looked
                sleep(pause)
            except OSError:  # NFS has such locks only for files that can be written to
                return not surely
        return False

    def is_of(self, path: str) -> bool:
        """Say whether this is the directory of that name."""
        return _has_name(self._fd, path)

    def let_others_in(self) -> None:
        """Tell others that the directory is open, and no more."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_SH)

    def forget(self) -> None:
        """Close what a child has inherited: with that, the parent's lock would outlive it."""
        os.close(self._fd)


# After each look for processes that have a directory open, in seconds: one that opens it as a
# guest needs a moment to say that it is one (`disown`).
_PAUSES_FOR_OTHERS = (0.0005, 0.002, 0.006, 0.0)


def _end_opening(fd: int, pid: int) -> None:
    if pid == os.getpid():  # else `forget` has closed it
        # Closing does not end the lock where a child is being forked at this moment.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


# By device and inode of the directory, for the connectors of this process to share: to a
# lock they are strangers.
_openings: weakref.WeakValueDictionary[tuple[int, int], _Opening] = weakref.WeakValueDictionary()
# Held while one is made known: of two threads, the second must find what the first has made.
_opening_lock = threading.Lock()


def _forget_openings() -> None:
    # Another thread of the parent may have held the lock; it does not exist in the child.
    global _opening_lock
    _opening_lock = threading.Lock()
    for opening in list(_openings.values()):
        opening.forget()
    _openings.clear()


os.register_at_fork(after_in_child=_forget_openings)


def _open(path: str) -> _Opening | None:
    """Tell others that this process has the directory open, once nobody is clearing it.

    None: the file system has no such locks, or the directory cannot be listed or is gone.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    found = os.fstat(fd)
    place = found.st_dev, found.st_ino
    opening = _openings.get(place)
    if opening is None:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        except OSError:
            os.close(fd)
            return None
        with _opening_lock:
            opening = _openings.get(place)
            if opening is None:
                _openings[place] = opening = _Opening(fd, place)
                return opening
    os.close(fd)
    return opening


def _let_others_in(place: tuple[int, int]) -> None:
    opening = _openings.get(place)
    if opening is not None:
        opening.let_others_in()


def _make_directories(path: str) -> None:
    # os.makedirs makes parents with the mode that the umask leaves: whoever may write to one
    # could put a directory of theirs in the place of ours.
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _make_directories(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def _claim_of(path: str) -> str:
    """Return the path of the claim on the object at `path`."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.claim"


def _has_name(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _read_claim(fd: int) -> tuple[str | None, float]:
    """Return who has an object, and until when on the wall clock; None if nobody has.

    That is also so if whoever claimed it was killed while writing.
    """
    with contextlib.suppress(ValueError):
        text = os.pread(fd, os.fstat(fd).st_size, 0).decode()
        until, _, claimant = text.partition(" ")
        if claimant.endswith("\n"):
            return claimant.removesuffix("\n"), float(until)
    return None, 0.0


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _write_all(fd: int, parts: Sequence[BytesLike]) -> None:
    if len(parts) <= _MOST_BUFFERS:
        written = os.writev(fd, parts)
        if written == sum(memoryview(part).nbytes for part in parts):
            return
    else:
        written = 0
    # Linux writes at most 2 GiB a call, and a signal may cut any call short.
    waiting = [memoryview(part).cast("B") for part in parts if len(part)]
    first = 0
    while True:
        while written:
            length = waiting[first].nbytes
            if written < length:
                waiting[first] = waiting[first][written:]
                break
            written -= length
            first += 1
        if first == len(waiting):
            return
        written = os.writev(fd, waiting[first : first + _MOST_BUFFERS])


def _read(fd: int, size: int) -> bytes:
    data = os.read(fd, size) if size else b""
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            break  # shorter than it was a moment ago: for the reader's length check
        data += more
    return data


# Private and writable: copy-on-write, so that tasks get arrays they may write to
# and all processes of a node share what none of them has written. Without a
# reservation, for mapping more than the machine has is the point of mapping.
_MAP_OPTIONS: dict[str, Any] = {
    "flags": mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0),  # Python 3.11
    "prot": mmap.PROT_READ | mmap.PROT_WRITE,
}
if not _TRACKS_FILES:
    _MAP_OPTIONS["trackfd"] = False


def _most_mappings() -> int:
    if _TRACKS_FILES:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files != resource.RLIM_INFINITY:
            return min(_MOST_MAPPINGS, files // 2)
    return _MOST_MAPPINGS


def _map(fd: int, size: int) -> memoryview | None:
    """Return a mapping of the file, or None if this process has no more to spare."""
    if len(_mappings) >= _FEW_MAPPINGS and len(_mappings) >= _most_mappings():
        return None
    try:
        mapping = mmap.mmap(fd, size, **_MAP_OPTIONS)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return None
        raise
    _mappings.add(weakref.ref(mapping, _mappings.discard))
    return memoryview(mapping)


def _read_into(fd: int, size: int) -> memoryview:
    # Anonymous memory instead of a bytearray: not zeroed by us before it is filled. Private:
    # neighbours count as one mapping.
    try:
        view = memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE))
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        view = memoryview(bytearray(size))
    filled = 0
    while filled < size:
        count = os.readv(fd, [view[filled:]])
        if not count:
            return view[:filled]
        filled += count
    return view


def _file_system(path: str) -> str:
    """Return the type of the file system that holds `path`, as Linux names it.

    "fuse.sshfs" and its like become "fuse"; "" where /proc does not tell.
    """
    best, kind = "", ""
    with contextlib.suppress(OSError), open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, where, found, *_ = line.split(" ")
            where = where.replace("\\040", " ")
            inside = where == "/" or path == where or path.startswith(f"{where}/")
            if inside and len(where) >= len(best):  # the later mount covers the earlier
                best, kind = where, found.partition(".")[0]
    return kind
