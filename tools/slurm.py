#!/usr/bin/env python3
"""A real Slurm cluster on this machine, for as long as a command or a test run takes.

    tools/slurm.py install                   the packages, as root on Debian and Ubuntu
    tools/slurm.py run COMMAND [ARGUMENT...] COMMAND with `sbatch`, `srun` and `sinfo` that work
    tools/slurm.py serve                     until standard input ends (what the tests use)

munged, slurmctld and two slurmd, with a key, configuration and state of their own in one temporary
directory: nothing in /etc is read or written, nothing listens but on loopback, and no cgroup is
needed. An ordinary user can do it where the packages are installed.

With --hosts (root only), the controller and each node are hosts of their own in namespaces: own
name, own address, own /dev/shm, and the rest of the file system shared, as on a cluster.

How everything ends with certainty: the process that serves is the "subreaper" of all it starts, so
whatever a job leaves behind, setsid or not, becomes its child and not init's. It ends them all when
its standard input ends, and that the kernel closes when the one who asked is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import pwd
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"]
PROGRAMS = "munged slurmctld slurmd sbatch srun sinfo squeue scancel".split()
NODES = ["n1", "n2"]

# As in sysexits.h: there is no Slurm to be had here, which is no fault of anybody's.
UNAVAILABLE = 69

# From linux/prctl.h.
PR_SET_CHILD_SUBREAPER = 36

# Loopback only; jobs known by process group; decisions at once instead of after seconds.
# `linuxproc` in place of `pgid` would follow parents, and lose what outlives a killed batch script.
# LLN: two small jobs go to two nodes, which is what there is to test.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={head}({head_address})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge/socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
KillWait=3
InactiveLimit=30
ReturnToService=2
PartitionName=debug Nodes=ALL Default=YES LLN=YES MaxTime=INFINITE State=UP
"""
# More cores than the machine may have; memory is shared out, not enforced.
NODE = "NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs=2 RealMemory=2000\n"


class NotHereError(Exception):
    """Slurm cannot be had on this machine, or not by this user."""


# ---- the command line -------------------------------------------------------------------


def main() -> int:
    """Do what the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(description="A real Slurm cluster, for as long as it takes.")
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("install", help="the packages; as root, with apt-get")
    serve_parser = commands.add_parser("serve", help="until standard input ends")
    run_parser = commands.add_parser("run", help="a command on a cluster of its own")
    for one in (serve_parser, run_parser):
        one.add_argument("--hosts", action="store_true", help="nodes are separate hosts; root only")
    run_parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    options = parser.parse_args()
    try:
        if options.what == "install":
            install()
            return 0
        if options.what == "serve":
            serve(hosts=options.hosts)
            return 0
        if not options.command:
            run_parser.error("which command?")
        return run(options.command, hosts=options.hosts)
    except NotHereError as e:
        print(f"slurm: {e}", file=sys.stderr)
        return UNAVAILABLE


def missing() -> list[str]:
    """Return the programs that a cluster takes and this machine does not have."""
    # Where daemons are, and the search path of an ordinary user does not go.
    for folder in ("/usr/local/sbin", "/usr/sbin", "/sbin"):
        if folder not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] += os.pathsep + folder
    return [name for name in PROGRAMS if shutil.which(name) is None]


def install() -> None:
    """Install what is missing with apt-get, without starting any of it."""
    absent = missing()
    if not absent:
        return
    by_hand = f"as root: apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    if shutil.which("apt-get") is None:
        raise NotHereError(f"{', '.join(absent)} not found, and no apt-get to install them with")
    if os.geteuid() != 0:
        raise NotHereError(f"{', '.join(absent)} not found; {by_hand}")
    print(f"Installing {' '.join(PACKAGES)} with apt-get; nothing will be started ...", flush=True)
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=60"]
    with services_stay_off():
        for command in (
            [*apt, "update"],
            [*apt, "install", "--no-install-recommends", *PACKAGES],
        ):
            done = subprocess.run(
                command,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if done.returncode != 0:
                raise NotHereError(f"{' '.join(command)} failed:\n{done.stdout[-1500:]}")


@contextlib.contextmanager
def services_stay_off() -> Iterator[None]:
    """Answer no when Debian's packages ask whether they may start their services."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():  # somebody has decided already
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def run(command: Sequence[str], *, hosts: bool) -> int:
    """Run a command on a cluster; return its exit status."""
    # Another process serves, so that this one may be killed without leaving a cluster behind.
    with subprocess.Popen(
        [sys.executable, __file__, "serve", *(["--hosts"] if hosts else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the command
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if not line:
                return server.wait()
            cluster = json.loads(line)
            try:
                return subprocess.run(
                    [*cluster["enter"], *command], env=client_environment(cluster["conf"])
                ).returncode
            except FileNotFoundError as e:
                print(f"slurm: {e.filename}: no such command", file=sys.stderr)
                return 127
        finally:
            server.stdin.close()
            server.wait()


def client_environment(conf: str) -> dict[str, str]:
    """Return this environment, for that cluster and no other that we may be in a job of."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
    return {**ours, "SLURM_CONF": conf}


# ---- a cluster --------------------------------------------------------------------------


def serve(*, hosts: bool) -> None:
    """Start a cluster, print how to reach it as a line of JSON, and end it with standard input.

    The line has ``conf``, for SLURM_CONF, and ``enter``, what to put before a command that is to
    run on the controller's host.
    """
    absent = missing()
    if absent:
        raise NotHereError(f"no {', '.join(absent)} here; see `tools/slurm.py install`")
    become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    # Not $TMPDIR, which may be long: sockets lie below, whose paths have at most 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    try:
        with contextlib.suppress(KeyboardInterrupt):
            machines = separate_hosts(directory) if hosts else this_host()
            start(directory, machines)
            facts = {"conf": str(directory / "slurm.conf"), "enter": machines[0].enter}
            print(json.dumps(facts), flush=True)
            while not select.select([sys.stdin], [], [], 1)[0] or os.read(0, 4096):
                reap()
    finally:
        end_all()
        shutil.rmtree(directory, ignore_errors=True)


class Machine:
    """Where a daemon runs.

    Attributes:
        host: Its name.
        address: The address where it listens.
        enter: What to put before a command that is to run there.
    """

    def __init__(self, host: str, address: str, enter: Sequence[str] = ()) -> None:
        self.host = host
        self.address = address
        self.enter = list(enter)


def this_host() -> list[Machine]:
    """Return the controller and the nodes, all on this host's loopback interface."""
    # Slurm listens where the host's own name leads to.
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "nowhere"
    if not address.startswith("127."):
        raise NotHereError(
            f"this host's name, {name}, leads to {address} and not to loopback: Slurm would "
            f"listen there. Put '127.0.0.1 {name}' first in /etc/hosts, or use --hosts"
        )
    return [Machine(name.partition(".")[0], "127.0.0.1")] * (1 + len(NODES))


def separate_hosts(directory: Path) -> list[Machine]:
    """Return the controller and the nodes as hosts of their own on a network of their own.

    Each is a process that holds its namespaces. They and the network have no names outside and
    vanish with the last process in them.
    """
    if os.geteuid() != 0:
        raise NotHereError("hosts of their own take root")
    names = ["head", *NODES]
    addresses = [f"10.77.13.{i}" for i in range(1, 1 + len(names))]
    hosts_file = directory / "hosts"
    lines = [f"{address} {name}" for address, name in zip(addresses, names, strict=True)]
    hosts_file.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    machines = []
    for name, address in zip(names, addresses, strict=True):
        holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-ec", MAKE_HOST, name, hosts_file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert holder.stdout is not None
        assert holder.stderr is not None
        if not holder.stdout.readline():
            raise NotHereError(f"no hosts of their own here: {holder.stderr.read().strip()}")
        enter = ["nsenter", f"--target={holder.pid}", "--net", "--uts", "--mount", "--wd=.", "--"]
        machines.append(Machine(name, address, enter))
        network, argument = (BRIDGE, "") if name == "head" else (CABLE, f"to-{name}")
        done = subprocess.run(
            [*machines[0].enter, "sh", "-ec", network, "sh", address, argument, str(holder.pid)],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise NotHereError(f"no network of its own here: {done.stderr.strip()}")
    return machines


# $0 and up: name and hosts file; $1: address; then name of the cable's end, process at the other.
MAKE_HOST = """
hostname "$0"
ip link set lo up
mount --bind "$1" /etc/hosts
mount -t tmpfs none /dev/shm
echo made
exec sleep infinity
"""
BRIDGE = """
ip link add br0 type bridge
ip link set br0 up
ip addr add $1/24 dev br0
"""
CABLE = """
ip link add $2 type veth peer name eth0 netns $3
ip link set $2 master br0 up
nsenter --target=$3 --net ip addr add $1/24 dev eth0
nsenter --target=$3 --net ip link set eth0 up
"""


def start(directory: Path, machines: Sequence[Machine]) -> None:
    """Start the daemons, and return when all nodes take jobs."""
    head, nodes = machines[0], machines[1:]
    conf = write_configuration(directory, head, nodes)
    environment = client_environment(str(conf))

    def launch(machine: Machine, name: str, *command: str | Path) -> subprocess.Popen[bytes]:
        with (directory / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [*machine.enter, *command],
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    munge = directory / "munge"
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
    options = [f"--{option}={munge / name}" for option, name in files.items()]
    daemons = [launch(head, "munged", "munged", "--foreground", "--num-threads=2", *options)]
    wait_for(lambda: (munge / "socket").exists(), directory, daemons)
    daemons.append(launch(head, "slurmctld", "slurmctld", "-D", "-f", conf))
    daemons += [
        launch(machine, f"slurmd-{name}", "slurmd", "-D", "-f", conf, "-N", name)
        for machine, name in zip(nodes, NODES, strict=True)
    ]

    def all_idle() -> bool:
        done = subprocess.run(
            [*head.enter, "sinfo", "--noheader", "--Node", "--format=%T"],
            env=environment,
            capture_output=True,
            text=True,
        )
        return done.stdout.split() == ["idle"] * len(NODES)

    wait_for(all_idle, directory, daemons)


def write_configuration(directory: Path, head: Machine, nodes: Sequence[Machine]) -> Path:
    """Write all that the daemons read; return the path of slurm.conf."""
    directory.chmod(0o755)  # munged wants its socket to be within everybody's reach
    for folder, mode in {"munge": 0o755, "state": 0o700, "spool": 0o755}.items():
        (directory / folder).mkdir()
        (directory / folder).chmod(mode)
    for name in NODES:
        (directory / "spool" / name).mkdir()
    key = directory / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)

    port = free_ports(1 + len(NODES))
    conf = directory / "slurm.conf"
    conf.write_text(
        CONFIGURATION.format(
            head=head.host,
            head_address=head.address,
            port=port,
            user=pwd.getpwuid(os.geteuid()).pw_name,
            directory=directory,
        )
        + "".join(
            NODE.format(name=name, host=machine.host, address=machine.address, port=port + i)
            for i, (machine, name) in enumerate(zip(nodes, NODES, strict=True), start=1)
        )
    )
    # slurmd loads one even if nothing uses it, and does not start where the one it guesses finds
    # no file system. That of version 1 does nothing; "disabled" came with Slurm 23.02.
    version = subprocess.check_output(["slurmd", "-V"], text=True).split()[1]
    plugin = "cgroup/v1" if int(version.split(".")[0]) < 23 else "disabled"
    (directory / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
    return conf


def free_ports(count: int) -> int:
    """Return the first of `count` ports in a row that nobody uses now."""
    while True:
        # Below those that the kernel hands out to whoever connects.
        first = random.randrange(20_000, 30_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def wait_for(
    condition: Callable[[], bool], directory: Path, daemons: Sequence[subprocess.Popen[bytes]]
) -> None:
    """Return when `condition` holds; after 30 s, or if a daemon ends, show the logs and fail."""
    deadline = time.monotonic() + 30
    while not condition():
        gone = [daemon for daemon in daemons if daemon.poll() is not None]
        if gone or time.monotonic() > deadline:
            for log in sorted(directory.rglob("*log")):
                text = log.read_text(errors="replace")
                print(f"--- {log.name}\n{text[-1500:]}", file=sys.stderr)
            why = f"{gone[0].args!r} has ended" if gone else "no cluster after 30 s"
            raise SystemExit(f"slurm: {why}")
        time.sleep(0.05)


# ---- the end ----------------------------------------------------------------------------


def become_subreaper() -> None:
    """Make this process, and not init, the parent of those whose parent ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise NotHereError(f"the kernel refuses: {os.strerror(ctypes.get_errno())}")


def reap() -> bool:
    """Take note of children that have ended; return whether there are any left."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def descendants() -> list[int]:
    """Return the processes below this one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # The name, in parentheses, may hold anything.
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def end_all() -> None:
    """End every process that comes from this one: two seconds to do so by itself, then at once."""
    for signum, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 60.0)):
        deadline = time.monotonic() + patience
        asked: set[int] = set()
        while reap():
            if time.monotonic() > deadline:
                break
            # Again and again: one that was just about to fork has children now.
            new = set(descendants()) - asked
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
            asked |= new
            time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
