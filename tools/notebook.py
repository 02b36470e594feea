#!/usr/bin/env python3
"""Run notebooks in the current directory, from top to bottom, as JupyterLab would.

    tools/notebook.py notebooks/03_dask.ipynb                 just run it
    tools/notebook.py --html build notebooks/03_dask.ipynb    and write build/03_dask.html

Prints how long each took and the process that it ran in; the exit status says whether all went
well. The notebooks themselves are not changed: they are committed without what they print.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

# Before it exits, ipykernel 7 waits half a minute for a child that ignores SIGTERM: the resource
# tracker of multiprocessing, which Dask's LocalCluster starts, and which has nothing left to do.
END_TRACKER = "from multiprocessing.resource_tracker import _resource_tracker as t; t._stop()"


def main() -> int:
    """Do what the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(description="Run notebooks in the current directory.")
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--html", type=Path, metavar="DIR", help="write a page of each into DIR")
    options = parser.parse_args()
    # The kernel of this environment, not one of the same name that the user has installed.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    # Notebooks import what is beside them; JupyterLab runs them there.
    folders = [str(path.resolve().parent) for path in options.notebooks]
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    return max(run(path, options.html) for path in options.notebooks)


def run(path: Path, pages: Path | None) -> int:
    """Run one notebook, print how it went, return the exit status."""
    notebook = nbformat.read(path, as_version=4)
    status = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as sockets:
        # In the file system, since other users of a login node could reach ports.
        # What it has stored is removed as it exits, for which 5 s may be short.
        kernel = {"transport": "ipc", "ip": f"{sockets}/kernel", "shutdown_wait_time": 60.0}
        config = Config(KernelManager=kernel)
        resources = {"metadata": {"path": os.getcwd()}}
        client = NotebookClient(
            notebook, config=config, timeout=180, kernel_name="python3", resources=resources
        )
        with client.setup_kernel():
            process = client.km.provisioner.process.pid
            try:
                client.execute(cleanup_kc=False, reset_kc=False)
            except CellExecutionError as error:
                print(error, file=sys.stderr)
                status = 1
            run_sync(end_tracker)(client.kc)
    print(f"{path.name}: {time.monotonic() - started:.1f} s in process {process}")
    if pages:
        write_page(notebook, pages / f"{path.stem}.html")
    return status


async def end_tracker(kernel: AsyncKernelClient) -> None:
    """End the kernel's resource tracker, and return when that is done."""
    await kernel.execute(END_TRACKER, silent=True, reply=True, timeout=60)


def write_page(notebook: nbformat.NotebookNode, page: Path) -> None:
    """Write a notebook that was run as a page of HTML."""
    from nbconvert import HTMLExporter  # Not needed for running, and slow to import.

    body, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(body, encoding="utf-8")
    print(f"open {page}")


if __name__ == "__main__":
    sys.exit(main())
