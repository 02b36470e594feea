"""The store that is there when nobody has named one, and how a store is named.

The embedded store is a directory of files. Beside it lies its owner record, which the
process that made it keeps locked for as long as it lives. So what a killed process has
left behind can be told from what is in use, without guessing:

    <base>/<name>         the objects
    <base>/<name>.owner   host, boot and process of the owner; locked while it lives

Another process may lock it, too (`keep_embedded`), if objects are to outlive the owner. The
last of them removes the directory.

The next process that makes an embedded store in the same base removes what belongs to
the provably dead: an owner of an earlier boot of this host, or one of this boot that
no longer holds its lock. Records of other hosts are never touched.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxystore.connectors.exceptions import StoreDirectoryError, free_bytes
from proxystore.connectors.file import FileConnector
from proxystore.store import (
    Store,
    StoreConfig,
    get_or_create_store,
    get_store,
    register_store,
)

logger = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")

# Containers give /dev/shm 64 MB by default, and a program that passes large objects by
# reference fills that at once. With less room than this, files go to a disk.
ENOUGH_ROOM = 1 << 30

# Only what has such a name is ever removed: a base may hold directories of the user's.
_OURS = re.compile(r"embedded-[0-9a-f]{8}\Z")

DIRECTORY_VARIABLE = "PROXYSTORE_DIR"

_lock = threading.Lock()
# By process (a forked child is another owner) and by whether other hosts can see it.
_stores: dict[tuple[int, bool], Store[Any]] = {}


def embedded_store(*, shared: bool = False) -> Store[Any]:
    """Return this process's store of files that needs no server and no configuration.

    Made, and registered, by the first call. The files are in ``/dev/shm`` if that has at
    least 1 GiB of room, else in ``$PROXYSTORE_DIR``, else in the user's cache directory.
    They are deleted when this process exits, unless another one keeps them; what a killed
    process has left is deleted when the next one makes its store.

    Args:
        shared: Other hosts have to see the files: leave out ``/dev/shm``.

    Raises:
        StoreDirectoryError: The directory cannot be used, for instance because
            ``$PROXYSTORE_DIR`` names one that is somebody else's.
    """
    with _lock:
        place = (os.getpid(), shared)
        store = _stores.get(place)
        if store is None:
            _stores[place] = store = _make(shared)
        return store


def is_embedded(store: Store[Any]) -> bool:
    """Say whether a store is one that `embedded_store` has made in this process."""
    return any(store is own for own in _stores.values())


def _make(shared: bool) -> Store[Any]:
    base, why = _choose_base(shared)
    name = f"embedded-{secrets.token_hex(4)}"
    record = None
    while record is None:
        _open_base(base)
        with contextlib.suppress(FileNotFoundError):  # its last user has just removed it
            record = _write_record(base, name)
    removed = sum(_remove(dead) for dead in _records_of_the_dead(base))
    _remove_ownerless(base)
    store: Store[Any] = Store(
        name,
        FileConnector(base / name),
        # Tasks get objects of their own (mapping a file is as quick as a cache).
        cache_size=0,
        populate_target=False,
        register=True,
    )
    atexit.register(_close, store, record, os.getpid())
    logger.info(
        "keeping large objects in %s (%s); removed %d left by processes that were killed",
        *(base / name, why, removed),
    )
    return store


def _choose_base(shared: bool) -> tuple[Path, str]:
    if not shared and os.access(MEMORY, os.W_OK | os.X_OK) and free_bytes(MEMORY) >= ENOUGH_ROOM:
        return MEMORY / f"proxystore-{os.geteuid()}", "in memory, seen by this host"
    named = os.environ.get(DIRECTORY_VARIABLE)
    if named:
        return Path(named).absolute(), f"${DIRECTORY_VARIABLE}"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "proxystore", "the user's cache directory"


def _open_base(base: Path) -> None:
    FileConnector(base, clear=False)  # makes it, and refuses what is not this user's
    if base.stat().st_uid != os.geteuid():
        raise StoreDirectoryError(str(base), "it is a directory that all users share")
    base.chmod(0o700)


# -- owner records


class _Record:
    """An owner record that this process has locked; the lock lasts as long as the file is open."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd

    def is_last(self) -> bool:
        """Say whether nobody else has locked it; from then on nobody can."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def _write_record(base: Path, name: str) -> _Record:
    path = base / f"{name}.owner"
    aside = base / f".{name}.owner"
    fd = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.write(fd, json.dumps({**_here(), "pid": os.getpid()}).encode())
    os.rename(aside, path)  # appears locked: nobody can take it for a dead owner's
    return _Record(path, fd)


def _here() -> dict[str, str]:
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": socket.gethostname(), "boot_id": boot}


def _records_of_the_dead(base: Path) -> Iterator[_Record]:
    here = _here()
    for path in base.glob("embedded-*.owner"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            owner = json.loads(path.read_text())
            if owner["host"] != here["host"]:
                continue
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                # On this host a lock is proof either way, whatever the file system;
                # after another boot the lock is gone and so is the process.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield _Record(path, fd)
            except BlockingIOError:
                pass
            finally:
                os.close(fd)


def _remove(record: _Record) -> int:
    directory = record.path.with_suffix("")
    if directory.exists():
        FileConnector(directory).close(clear=True)
    record.path.unlink(missing_ok=True)
    return 1


def _remove_ownerless(base: Path) -> None:
    # A worker that outlived the owner has made the directory again, and perhaps stored a
    # result that nobody will ask for. An owner writes its record before it makes the
    # directory, and removes it after: a directory without one has no owner.
    for directory in base.glob("embedded-*"):
        if _OURS.match(directory.name) and not directory.with_suffix(".owner").exists():
            with contextlib.suppress(OSError):
                FileConnector(directory).close(clear=True)


def _close(store: Store[Any], record: _Record, pid: int) -> None:
    if pid != os.getpid():
        return
    last = record.is_last()
    store.close(clear=last)
    _give_up(record, last=last)


def _give_up(record: _Record, *, last: bool) -> None:
    if last:
        record.path.unlink(missing_ok=True)
    os.close(record.fd)
    with contextlib.suppress(OSError):  # others are in it
        record.path.parent.rmdir()


class Keeper:
    """Keeps the objects of an embedded store when the process that has made it is gone."""

    def __init__(self, record: _Record) -> None:
        self._record = record

    def release(self) -> None:
        """Keep them no more: if nobody else does, they are deleted. Call it once."""
        last = self._record.is_last()
        if last:
            _remove(self._record)
        _give_up(self._record, last=last)


def keep_embedded(store: Store[Any]) -> Keeper | None:
    """Keep the objects of an embedded store that another process has made.

    Args:
        store: Any store, opened from a configuration that came from there.

    Returns:
        What keeps them; None if it is no embedded store, is this process's own, or was
        removed already.
    """
    connector = store.connector
    if not isinstance(connector, FileConnector):
        return None
    path = Path(f"{connector.store_dir}.owner")
    if not _OURS.match(path.stem):
        return None
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        owner = json.loads(os.read(fd, 4096))
        is_there = os.path.samestat(os.fstat(fd), path.stat())
        if is_there and {**_here(), "pid": os.getpid()} != owner:
            return Keeper(_Record(path, fd))
    except (OSError, ValueError):  # no locks here, or it was being removed
        pass
    os.close(fd)
    return None


# -- naming a store


def open_store(
    spec: Store[Any] | StoreConfig | str | os.PathLike[str] | None, *, shared: bool = False
) -> Store[Any]:
    """Return the store that a user has named, registered in this process.

    Args:
        spec: A store; a configuration; the path of a TOML file with one; None: the
            embedded store.
        shared: As for `embedded_store`.

    Raises:
        TypeError: `spec` is none of these.
        StoreConfigError: The file cannot be read or is not TOML.
        pydantic.ValidationError: It does not describe a store.
        UnknownConnectorError: The connector cannot be imported.
        ConnectorOptionsError: It does not take its options.
        StoreDirectoryError: Its directory cannot be used.
    """
    if spec is None:
        return embedded_store(shared=shared)
    if isinstance(spec, Store):
        if get_store(spec.name) is None:
            register_store(spec)
        return spec
    if isinstance(spec, (str, os.PathLike)):
        spec = StoreConfig.from_toml(spec)
    if isinstance(spec, StoreConfig):
        known = get_store(spec.name)
        if known is not None and not known.is_at(spec.connector):
            spec.connector.get_connector()  # a wrong one must not pass for the one we know
        return get_or_create_store(spec)
    raise TypeError(
        f"a store must be a Store, a StoreConfig, the path of a TOML file, or None for the "
        f"embedded store, got {type(spec).__name__}"
    )
