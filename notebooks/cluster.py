"""Where the notebooks run: on this machine, or on the cluster that a TOML file describes.

    place = cluster.load()  # what the file $PROXYSTORE_CLUSTER says, or this machine
    store = place.store()  # a Store that all workers can reach; close it
    with place.dask_client(2, ps_store=store) as client: ...  # 2 workers, proxystore_dask.Client
    with place.dask_client(2, distributed.Client) as client: ...  # the same, plain Dask
    with parsl.load(place.parsl_config(2)): ...  # 2 workers
    place.close()  # removes the directory in which all of this was

Copy this file and `cluster.slurm.toml` or `cluster.pbs.toml` into your project. A program that says
`cluster.load()` runs on a laptop and on a cluster; which one is not its business.

Everything that is written goes into one directory of its own, `place.directory`: objects, Dask's
spilled data, logs. Without `close`, it is removed when the program ends, or by the next one.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import sysconfig
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import parsl
from dask_jobqueue import PBSCluster, SLURMCluster
from distributed import Client as DaskClient
from distributed import LocalCluster
from parsl.addresses import address_by_hostname, address_by_interface
from parsl.executors import HighThroughputExecutor
from parsl.launchers import MpiExecLauncher, SrunLauncher
from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider

import proxystore_dask
from proxystore.connectors.file import FileConnector
from proxystore.store import Store

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

LOOPBACK = "127.0.0.1"
PRIVATE = f"{LOOPBACK}:0"  # a page that is seen from its own host only, on any free port
# Parsl starts its own programs by name; they are beside the Python that runs this.
PATH = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]


def load(path: str | os.PathLike[str] | None = None) -> Place:
    """Return the place that a file describes.

    Args:
        path: The file. None: the one that the environment variable PROXYSTORE_CLUSTER names, else
            `cluster.local.toml` beside this module.
    """
    path = path or os.environ.get("PROXYSTORE_CLUSTER") or Path(__file__).with_name(DEFAULT)
    return Place(tomllib.loads(Path(path).read_text(encoding="utf-8")))


DEFAULT = "cluster.local.toml"

# Directories begin with this, and go on with the process that has made them.
OURS = f"proxystore-{socket.gethostname()}-"


def remove_leftovers(parent: Path) -> None:
    """Remove the directories of programs on this host that were killed: restarted kernels."""
    for left in parent.glob(f"{OURS}*"):
        process, *rest = left.name.removeprefix(OURS).split("-")
        # A longer rest: of a host whose name begins like this one's.
        if process.isdecimal() and len(rest) == 1 and not Path("/proc", process).exists():
            shutil.rmtree(left, ignore_errors=True)  # unless it is another user's


class Place:
    """Where workers run, and where they keep things.

    Args:
        description: What is in the file; `cluster.slurm.toml` says what that may be.

    Attributes:
        system: "local", "slurm" or "pbs".
        directory: What is written is in here; seen by all nodes.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        self.system: str = description["system"]
        if self.system not in ("local", "slurm", "pbs"):
            raise ValueError(f"system must be 'local', 'slurm' or 'pbs', got {self.system!r}")
        self._dask = description.get("dask", {})
        self._parsl = description.get("parsl", {})
        self._interface: str | None = description.get("interface")
        self._per_node: int = description.get("workers_per_node", 1)
        parent = Path(os.path.expandvars(description["directory"])).expanduser()
        if self.system == "local":  # elsewhere, who knows what others mean by this host's name
            remove_leftovers(parent)
        self._temporary = tempfile.TemporaryDirectory(
            prefix=f"{OURS}{os.getpid()}-",
            dir=parent,
            ignore_cleanup_errors=True,  # a job that is ending may still write into its log
        )
        self.directory = Path(self._temporary.name).resolve()

    def __repr__(self) -> str:
        return f"Place(system={self.system!r}, directory='{self.directory}')"

    def close(self) -> None:
        """Remove the directory."""
        self._temporary.cleanup()

    def store(self, name: str = "notebook") -> Store[Any]:
        """Return a store with files of its own, which all workers can reach."""
        return Store(name, FileConnector(self.directory / f"{name}-{uuid.uuid4().hex[:8]}"))

    # ---- Dask ----------------------------------------------------------------------------

    @contextmanager
    def dask_client(
        self,
        n_workers: int,
        client_class: type[DaskClient] = proxystore_dask.Client,
        **options: Any,
    ) -> Iterator[Any]:
        """Run a scheduler in this process, and workers; give a client once all are there.

        Args:
            n_workers: How many workers.
            client_class: Of the client.
            **options: Arguments of the client, such as `ps_store`.
        """
        with self.dask_cluster(n_workers) as cluster, client_class(cluster, **options) as client:
            client.wait_for_workers(n_workers, timeout=600)  # jobs may have to queue
            yield client

    def dask_cluster(self, n_workers: int) -> LocalCluster | SLURMCluster | PBSCluster:
        """Return a scheduler in this process with workers that are starting."""
        if self.system == "local":
            return LocalCluster(
                n_workers=n_workers,
                host=LOOPBACK,
                dashboard_address=PRIVATE,
                worker_dashboard_address=PRIVATE,
                local_directory=str(self.directory),
                **self._dask,
            )
        job_cluster = {"slurm": SLURMCluster, "pbs": PBSCluster}[self.system]
        cluster = job_cluster(
            processes=self._per_node,
            interface=self._interface,
            log_directory=str(self.directory / "dask"),
            scheduler_options={"dashboard_address": PRIVATE},
            worker_extra_args=["--dashboard-address", PRIVATE],
            **self._dask,
        )
        cluster.scale(n_workers)
        return cluster

    # ---- Parsl ---------------------------------------------------------------------------

    def parsl_config(self, n_workers: int, **options: Any) -> parsl.Config:
        """Return a configuration of Parsl with one executor, called "workers".

        Args:
            n_workers: How many workers.
            **options: Arguments of the `Config`, such as `retries`.
        """
        os.environ["PATH"] = PATH
        local = self.system == "local"
        executor = HighThroughputExecutor(
            label="workers",
            address=self._address(),
            max_workers_per_node=n_workers if local else self._per_node,
            provider=self._provider(1 if local else math.ceil(n_workers / self._per_node)),
        )
        # How soon it asks for workers; 5 s by default.
        options = {"strategy_period": 0.5, "initialize_logging": False, **options}
        return parsl.Config(executors=[executor], run_dir=str(self.directory / "parsl"), **options)

    def _provider(self, nodes: int) -> LocalProvider | SlurmProvider | PBSProProvider:
        provider = {"local": LocalProvider, "slurm": SlurmProvider, "pbs": PBSProProvider}
        # What starts a pool of workers on each node of the job.
        launchers = {"slurm": SrunLauncher, "pbs": MpiExecLauncher}
        options = {"init_blocks": 1, "max_blocks": 1, "nodes_per_block": nodes, **self._parsl}
        if self.system in launchers:
            options["launcher"] = launchers[self.system]()
        options["worker_init"] = "\n".join(
            [f"export PATH={PATH}", "export OMP_NUM_THREADS=1", options.get("worker_init", "")]
        )
        return provider[self.system](**options)

    def _address(self) -> str:
        """Return the address of this host as the workers see it."""
        if self.system == "local":
            return LOOPBACK
        return address_by_interface(self._interface) if self._interface else address_by_hostname()
