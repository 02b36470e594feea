"""Which process this is, said so that others can tell whether it still lives.

A process is known by its host, the boot and the PID namespace it runs in, its id there and
when it was started. Where all but the last two agree, the operating system knows better than
any time-out: an id that nobody has, or that a later process has, was that of a dead one.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket

# Made once in a process: a put says who puts, and no put should wait for that.
_owner: bytes | None = None
_identity: str | None = None


def _forget() -> None:
    # They are the parent's.
    global _owner, _identity
    _owner = _identity = None


os.register_at_fork(after_in_child=_forget)


def owner() -> bytes:
    """Return ``user@host:pid`` of this process, for people to read, in UTF-8."""
    global _owner
    if _owner is None:
        text = f"{_user()}@{socket.gethostname()}:{os.getpid()}"
        _owner = text.replace("\0", "").encode("utf-8", "replace")
    return _owner


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, ImportError, OSError):  # a container need not know its users
        return str(os.geteuid())


def identity() -> str:
    """Return what tells this process from all others, for `is_dead`; one line."""
    global _identity
    if _identity is None:
        pid = os.getpid()
        facts = [socket.gethostname(), boot_id(), _namespace(), str(pid), _started(pid) or ""]
        _identity = " ".join("".join(fact.split()) or "-" for fact in facts)
    return _identity


def is_dead(identity_of: str) -> bool:
    """Say whether the process with this `identity` is provably dead.

    False for what runs on another host, or in a container with process ids of its own.

    Args:
        identity_of: What `identity` has returned there. Any other text is nobody's.
    """
    fields = identity_of.split(" ")
    ours = identity().split(" ")
    if len(fields) != len(ours) or "-" in fields[1:] or fields[1:3] != ours[1:3]:
        return False
    if not fields[3].isdecimal() or int(fields[3]) == 0:
        return False
    pid = int(fields[3])
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it lives, and is another user's
        pass
    started = _started(pid)
    return started is not None and started != fields[4]


def shown(identity_of: str) -> str:
    """Return an `identity` as people would say it; any other text as it is."""
    fields = identity_of.split(" ")
    return f"process {fields[3]} on {fields[0]}" if len(fields) == 5 else identity_of


def boot_id() -> str:
    """Return a text that is another one after each start of this host; "" if there is none."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return when a process was started, in ticks since the boot; "0" once it is dead.

    None if that cannot be told: `/proc` may not show processes of others.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the program's name in parentheses, whatever that holds.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # A zombie: killed, and its parent has not asked for it yet. Should only its first
    # thread have ended, others are left.
    if fields[0] in (b"Z", b"X") and int(fields[17]) <= 1:
        return "0"
    return fields[19].decode()
